"""May the scores be trusted, as far as the models go? Each check is a light, a plain sentence and its figures."""

import math
from dataclasses import dataclass

from ltmia.evaluation.results import Check, Measure

EXAMINED_TIMES = 4.3
"""Distance, in units of the limit, of the farthest target that the shipped classifier was examined on and found more
members in than any published rule does (docs/log.md, 2026-11-28: Gemma 3, 3.63 at a limit of .84)."""
NOISE_SHARE = 0.1
"""Noise of a tenth of the scores' spread adds one per cent to their variance: too little to change a ranking."""
FAR_APART = 0.5
"""Mean change of the weights, relative to the base's, that no ordinary fine-tune reaches; unrelated weights: 1.4."""
SAME = 1e-5
"""Mean distance of two log-probabilities of a token, nats, up to which two models are one: that much is rounding."""
SAME_SHAPE_SHARE = 0.5
"""Below this share of parameters with a counterpart in the base, the two are of different kinds."""

RECORDED_BASE = Check(
    status="not_measured",
    sentence="Only recordings of the models were at hand, so their weights could not be compared: that the "
    "reference is the base which the target was fine-tuned from rests on whoever recorded them.",
)
RECORDED_BACKEND = Check(
    status="not_measured",
    sentence="Only recordings of the models were at hand, so no text could be scored again: how noisy their "
    "numbers are is not known.",
)
"""What the checks say that need the models."""

Details = dict[str, float | int | str | None]


def distribution_check(distance: float | None, limit: float) -> Check:
    """Judge how far this target's features lie from those the classifier was trained on."""
    if distance is None:
        return Check(status="not_measured", sentence="No learned classifier took part.")
    measure = Measure(value=distance)
    if distance <= limit:
        sentence = f"The features lie within what the classifier was trained on (distance {distance:.2f})."
        return Check(status="ok", sentence=sentence, measure=measure)
    found = f"The features lie outside the classifier's training data (distance {distance:.2f}, limit {limit:.2f})"
    if distance <= EXAMINED_TIMES * limit:
        sentence = f"{found}, but no farther than other models on which it found more than any published rule."
        return Check(status="ok", sentence=sentence, measure=measure)
    sentence = (
        f"{found}, farther than any model it was examined on. It may find fewer members than it could: compare it with "
        "the other attacks. What it flags keeps the stated error rate, since its own non-members calibrate it."
    )
    return Check(status="warning", sentence=sentence, measure=measure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """A few texts' mean log-ratio of target to reference, scored again."""

    noise: float
    """Largest difference between the audit's batches and each text alone, in nats."""
    float32: float | None
    """Largest difference between the audit's dtype and float32, both alone; None where it was not tried."""
    reason: str | None = None
    """Why float32 was not tried."""


def backend_check(rescored: Rescored, *, gap: float, spread: float, dtype: str, reference_dtype: str) -> Check:
    """Judge the numeric noise of the models against the signal.

    Args:
        rescored: What scoring again showed.
        gap: Mean log-ratio of members minus that of non-members.
        spread: Standard deviation of the mean log-ratio over texts.
        dtype: What the target was computed in.
        reference_dtype: What the base was computed in.
    """
    details: Details = {
        "noise": rescored.noise if math.isfinite(rescored.noise) else None,
        "float32_difference": None if rescored.float32 is None or math.isnan(rescored.float32) else rescored.float32,
        "float32_reason": rescored.reason,
        "gap": None if math.isnan(gap) else gap,
        "spread": None if math.isnan(spread) else spread,
        "dtype": dtype,
        "reference_dtype": reference_dtype,
    }
    if not spread > 0:
        sentence = "No two texts could be scored apart, so noise has nothing to be held against."
        return Check(status="not_measured", sentence=sentence, details=details)
    worst = max(rescored.noise, rescored.float32 or 0.0)
    found = f"Scored again one by one, texts move by {_share(rescored.noise / spread)} of their spread"
    if rescored.float32 is not None:
        computed = dtype if dtype == reference_dtype else f"{dtype} (target) and {reference_dtype} (base)"
        found += f", and by {_share(rescored.float32 / spread)} in float32 instead of {computed}"
    if worst <= NOISE_SHARE * spread:
        return Check(status="ok", sentence=f"{found}: noise is negligible.", details=details)
    exact = dtype == reference_dtype == "float32"
    cure = "the models' code depends on the batch" if exact else "audit again in float32"
    sentence = (
        f"{found} ({worst:.2g} nats; members and non-members differ by {gap:.2g} on average): noise hides part of what "
        f"is given away; {cure}."
    )
    return Check(status="warning", sentence=sentence, details=details)


def _share(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 else "less than 0.1%"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseComparison:
    """How closely target and reference are related."""

    shared: float
    """Share of the target's parameters that have a counterpart in the reference."""
    change: float | None
    """Mean change of those, relative to the reference's; None for an adapter, whose base cannot be another.

    NaN where a weight is not finite, infinite where no weight has a counterpart.
    """
    agreement: float
    """Correlation of both models' log-probabilities over the tokens of non-members; NaN if none.

    For information only: a hard fine-tune may leave .8, and an unrelated model of the same language reach it.
    """
    target_loss: float
    """Mean loss on those tokens, nats."""
    reference_loss: float
    difference: float
    """Mean distance of both models' log-probabilities of a token, nats; NaN if there is none."""


def base_check(kin: BaseComparison) -> Check:
    """Judge whether the reference is the base that the target was fine-tuned from."""
    losses = f"loss on non-members {kin.target_loss:.2f} against {kin.reference_loss:.2f} nats per token"
    if math.isnan(kin.target_loss) or math.isnan(kin.reference_loss):
        losses = "no text could be scored to compare their losses"
    details: Details = {
        "shared_parameters": kin.shared,
        "weight_change": kin.change,
        "agreement": None if math.isnan(kin.agreement) else kin.agreement,
        "difference": kin.difference,
        "target_loss": kin.target_loss,
        "reference_loss": kin.reference_loss,
    }
    details = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in details.items()}
    if kin.difference <= SAME:
        sentence = (
            "Target and base are the same model: they give every token the same probability. Nothing can be found "
            "between them; check that the base is the right one, and that the target is the model that was fine-tuned."
        )
        return Check(status="failed", sentence=sentence, details=details)
    if kin.change is not None and math.isnan(kin.change):
        sentence = (
            "The weights of the target or of its base are not all finite numbers: a checkpoint is damaged, or its "
            "numbers are too large for this precision; try float32."
        )
        return Check(status="failed", sentence=sentence, details=details)
    if math.isnan(kin.difference):
        sentence = "No token could be scored by both models, so they could not be compared."
        return Check(status="not_measured", sentence=sentence, details=details)
    doubt = _doubt_of_base(kin)
    if doubt is None:
        moved = "" if kin.change is None else f"its weights changed by {kin.change:.2%} on average, "
        sentence = f"The target descends from the base given: {moved}{losses}."
        return Check(status="ok", sentence=sentence, details=details)
    sentence = (
        f"{doubt} ({losses}), so this is hardly the base that the target was fine-tuned from. Against a wrong base all "
        "attacks that compare the two find less than there is: name the right one."
    )
    return Check(status="warning", sentence=sentence, details=details)


def _doubt_of_base(kin: BaseComparison) -> str | None:
    if kin.shared < SAME_SHAPE_SHARE:
        return f"Only {kin.shared:.0%} of the target's parameters have one like it in the base, another kind of model"
    if kin.change is not None and kin.change > FAR_APART:
        return f"The target's weights differ from the base's by {kin.change:.0%} on average, more than fine-tuning does"
    return None
