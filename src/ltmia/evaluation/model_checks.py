"""Checks of the models: can the scores be trusted? Each check has a status, a plain sentence and its figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ltmia.evaluation.results import Check
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import percent

TESTED_TIMES = 4.3
"""Largest distance, in limits, at which the shipped classifier was tested and found more members than any published
attack (docs/log.md, 2026-11-28: Gemma 3, distance 3.63 at a limit of .84)."""
NOISE_SHARE = 0.1
"""Largest harmless noise, as a share of the scores' standard deviation: it adds one per cent to their variance."""
FAR_APART = 0.5
"""Mean relative change of the weights that no ordinary fine-tune reaches; unrelated weights have 1.4."""
SAME = 1e-5
"""Largest mean difference of log-probabilities, in nats, that rounding can cause: such models are the same."""
SAME_SHAPE_SHARE = 0.5
"""Smallest share of parameters with a counterpart in the base; with fewer, the models are of different kinds."""

RECORDED_BASE = Check(
    status="not_measured",
    sentence="Only recordings of the models were available, so their weights could not be compared. Nobody checked "
    "that the reference is the base which the target was fine-tuned from.",
)
RECORDED_BACKEND = Check(
    status="not_measured",
    sentence="Only recordings of the models were available, so no text could be scored again and the numeric noise "
    "is unknown.",
)
"""Results of the checks that need the models, for audits that have only recordings."""

Details = dict[str, float | int | str | None]


def distribution_check(distance: float | None, limit: float) -> Check:
    """Judge the distance of this target's features from those that the classifier was trained on."""
    if distance is None:
        return Check(status="not_measured", sentence="No classifier was used.")
    measure = Measure(value=distance)
    if distance <= limit:
        sentence = f"This target is like the classifier's training models (distance {distance:.2f}, limit {limit:.2f})."
        return Check(status="ok", sentence=sentence, measure=measure)
    found = f"This target differs from the classifier's training models (distance {distance:.2f}, limit {limit:.2f})"
    if distance <= TESTED_TIMES * limit:
        sentence = f"{found}, but not more than models on which the classifier was better than any published attack."
        return Check(status="ok", sentence=sentence, measure=measure)
    sentence = (
        f"{found}, more than any model on which the classifier was tested. It may miss members: compare it with "
        "the other attacks. Its flags keep the stated error rate, because the target's own non-members calibrate it."
    )
    return Check(status="warning", sentence=sentence, measure=measure)


def length_read_check(
    weights: Sequence[float], *, n_compared: int, size: int, n_telling: int | None, prompted: bool = False
) -> Check:
    """Judge whether the target was trained on as much of each text as was read.

    Args:
        weights: Weight of a token in each window of the texts, from the first on.
        n_compared: Number of windows, from the first on, that enough texts reach for a comparison.
        size: Tokens of a window.
        n_telling: Number of tokens before the first window that tells little; None if there is no such window.
        prompted: Whether these tokens follow prompts, whose tokens `max_length` counts too.
    """
    if len(weights) < 2:
        sentence = f"No text was read beyond the {size} tokens that the classifier reads at once."
        return Check(status="ok", sentence=sentence)
    if n_compared < 2:
        return Check(status="not_measured", sentence=f"Too few texts are much longer than {size} tokens.")
    measure = Measure(value=float(weights[n_compared - 1] / weights[0]))
    details: dict[str, float | int | str | None] = {"tokens_that_tell": n_telling}
    if n_telling is None:
        sentence = (
            "Nothing shows that fine-tuning read less of each text than the audit did. Windows of "
            f"{size} tokens were compared, up to token {n_compared * size}."
        )
        return Check(status="ok", sentence=sentence, measure=measure, details=details)
    after, cure = "", f"`max_length={n_telling}`"
    if prompted:
        after, cure = " after the prompt", f"a `max_length` of the prompts' tokens and {n_telling} more"
    sentence = (
        f"Fine-tuning seems to have read only the first {n_telling} tokens{after} of each text, because the rest tells "
        "little. The classifier gives the rest little weight, but attacks without a classifier and those on the "
        f"weights count all tokens alike: audit with {cure}."
    )
    return Check(status="warning", sentence=sentence, measure=measure, details=details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """A few texts' mean log-ratio of target to reference, scored again."""

    noise: float
    """Largest difference between the audit's batches and each text alone, in nats."""
    float32: float | None
    """Largest difference between the audit's dtype and float32, each text alone; None if it was not tried."""
    reason: str | None = None
    """Why float32 was not tried."""


def backend_check(rescored: Rescored, *, gap: float, spread: float, dtype: str, reference_dtype: str) -> Check:
    """Judge the numeric noise of the models against the signal.

    Args:
        rescored: Result of scoring again.
        gap: Mean log-ratio of members minus that of non-members.
        spread: Standard deviation of the mean log-ratio over texts.
        dtype: Number format of the target.
        reference_dtype: Number format of the base.
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
        sentence = "All scored texts have the same log-ratio, so there is no spread to compare noise with."
        return Check(status="not_measured", sentence=sentence, details=details)
    worst = max(rescored.noise, rescored.float32 or 0.0)
    found = (
        f"When texts were scored again one by one, scores changed by {_share(rescored.noise / spread)} of their spread"
    )
    if rescored.float32 is not None:
        computed = dtype if dtype == reference_dtype else f"{dtype} (target) and {reference_dtype} (base)"
        found += f", and by {_share(rescored.float32 / spread)} in float32 instead of {computed}"
    if worst <= NOISE_SHARE * spread:
        return Check(status="ok", sentence=f"{found}: noise is negligible.", details=details)
    exact = dtype == reference_dtype == "float32"
    cure = "the models' code depends on the batch" if exact else "audit again in float32"
    sentence = (
        f"{found} ({worst:.2g} nats; members and non-members differ by {gap:.2g} on average): noise hides part of the "
        f"leakage; {cure}."
    )
    return Check(status="warning", sentence=sentence, details=details)


def _share(part: float) -> str:
    return percent(part) if part >= 0.0005 else "less than 0.05 %"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseComparison:
    """How closely target and reference are related."""

    shared: float
    """Share of the target's parameters that have a counterpart in the reference."""
    change: float | None
    """Mean relative change of these parameters; None for an adapter, whose base is certain.

    NaN if a weight is not finite, infinite if no weight has a counterpart.
    """
    agreement: float
    """Correlation of both models' log-probabilities over the tokens of non-members; NaN if none.

    For information only: it may be .8 after a strong fine-tune, and as high between unrelated models of one language.
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
            "Target and base are the same model: they give every token the same probability, so no attack can find "
            "anything. Check that the base is right and that the target is the fine-tuned model."
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
        moved = "" if kin.change is None else f"its weights changed by {percent(kin.change)} on average, "
        sentence = f"The target was fine-tuned from the given base: {moved}{losses}."
        return Check(status="ok", sentence=sentence, details=details)
    sentence = (
        f"{doubt} ({losses}), so the target was probably not fine-tuned from this base. With a wrong base all "
        "attacks that compare the two models find less: name the right one."
    )
    return Check(status="warning", sentence=sentence, details=details)


def _doubt_of_base(kin: BaseComparison) -> str | None:
    if kin.shared < SAME_SHAPE_SHARE:
        shared = percent(kin.shared)
        return f"Only {shared} of the target's parameters have a counterpart in the base, another kind of model"
    if kin.change is not None and kin.change > FAR_APART:
        change = percent(kin.change)
        return f"The target's weights differ from the base's by {change} on average, more than fine-tuning does"
    return None
