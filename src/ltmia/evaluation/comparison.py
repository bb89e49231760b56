"""Compares two audits of the same texts: which model reveals more?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ltmia.errors import ConfigError
from ltmia.evaluation.blind_spots import of_an_audit
from ltmia.evaluation.bootstrap import resampled_figures, resamples
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import Scores, auc, tpr_at_fpr
from ltmia.evaluation.section import Measure
from ltmia.evaluation.shown import one_line
from ltmia.evaluation.wording import figure

N_RESAMPLES = 1000
FEWEST_FALSE_POSITIVES = 10
FPR_TARGETS = (0.1, 0.01, 0.001)

WITHOUT_EFFECT = ("batch_size", "reveal", "spans", "alternatives", "most_values")
"""Settings that do not affect the figures that are compared."""

Answer = Literal["yes", "no", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison of the second audit with the first."""

    attack: str
    auc: Measure
    """AUC of the second minus that of the first."""
    tpr_at_fpr: Mapping[str, Measure]
    identifiable: tuple[int, int] | None
    """Records that the attack flags in the first and in the second; None if it decided for no observer there."""
    lower_leakage: Answer
    """Whether the second model reveals less, by the AUC."""
    doubts: Sequence[str] = ()
    """Reasons why an audit that seems to find less may have seen too little: then the answer is "cannot tell"."""
    subjects: Sequence[str] = ()
    """What the audits are of, a line each, where that is more than a model and texts."""

    def tree(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "attack": self.attack,
            "lower_leakage": self.lower_leakage,
            "auc": self.auc.model_dump(),
            "tpr_at_fpr": {fpr: measure.model_dump() for fpr, measure in self.tpr_at_fpr.items()},
            "identifiable": None if self.identifiable is None else list(self.identifiable),
            "doubts": list(self.doubts),
            "sentence": self.sentence,
            "subjects": list(self.subjects),
        }

    @property
    def sentence(self) -> str:
        """The comparison as a sentence."""
        a = self.auc
        if a.value is None:
            return f"Lower leakage: {self.lower_leakage}. {a.reason}."
        flags = self.identifiable
        return (
            f"Lower leakage: {self.lower_leakage}. The AUC of {self.attack} changes by {figure(a, signed=True)}"
            + (f", the records identifiable from {flags[0]} to {flags[1]}." if flags else ".")
            + (f" But the audit that found less may see too little: {' '.join(self.doubts)}" if self.doubts else "")
        )


def compare_audits(
    first: tuple[Results, pa.Table],
    second: tuple[Results, pa.Table],
    *,
    attack: str | None = None,
    same_texts: bool | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two audits of the same members and non-members, text by text.

    Intervals concern the paired difference: both audits are resampled in the same way, whole groups at a time (95 %,
    percentile bootstrap).

    Args:
        first: Results and records of the first audit, for example before a change.
        second: Results and records of the second audit.
        attack: Attack to compare; the one that decided the first audit when None.
        same_texts: Whether both have the same texts in the same order, by `are_of_same_texts`. If this is unknown
            (None), the ids must be the same; ids that ltmia made differ between folders.
        seed: Seed of the resampling.

    Raises:
        ConfigError: If the audits have other texts or settings, or lack the attack.
    """
    _refuse_other_settings(first[0], second[0])
    attack = attack or first[0].decisions.attack
    if same_texts is False:
        raise ConfigError(
            "the two audits are of different texts, or of the same texts in another order: audit the same texts"
        )
    texts = _same_texts(first[1], second[1], ("label",) if same_texts else ("id", "label"))
    scores = [_scores(audit, attack, name) for audit, name in ((first, "first"), (second, "second"))]
    usable = ~np.isnan(scores[0] + scores[1])
    a, b = (values[usable] for values in scores)
    labels, groups = texts.labels[usable] == 1, texts.groups[usable]
    difference = _paired_difference(a, b, labels, groups, seed)
    answer = _answer(difference["auc"])
    found_less = {"yes": second[0], "no": first[0]}.get(answer)
    doubts = [*of_an_audit(found_less), *_other_attackers(first[0], second[0])] if found_less else []
    both = (("First", first[0]), ("Second", second[0]))
    was, now = (_n_flagged(results, attack) for results in (first[0], second[0]))
    return Comparison(
        attack=attack,
        auc=difference["auc"],
        tpr_at_fpr={name: measure for name, measure in difference.items() if name != "auc"},
        identifiable=None if was is None or now is None else (was, now),
        lower_leakage="cannot tell" if doubts else answer,
        doubts=doubts,
        subjects=[one_line(f"{which} audit: {of.subject}") for which, of in both if of.subject is not None],
    )


def _n_flagged(results: Results, attack: str) -> int | None:
    """Return the number of records that an attack flags; None if it does not decide for any observer."""
    decided = [results.decisions, *(found.decisions for found in results.observers.values())]
    return next((found.n_flagged for found in decided if found and found.attack == attack), None)


def _other_attackers(first: Results, second: Results) -> list[str]:
    """Say if only one audit is of synthetic data, or each has another auxiliary fine-tune."""
    ways = {
        (of.reference.sha256, made.epochs, made.learning_rate, made.lora) if (made := of.synthetic) else None
        for of in (first, second)
    }
    if len(ways) == 1:
        return []
    if None in ways:
        return ["Only one of the audits is of synthetic data: its attacker sees less than that of the other."]
    return [
        "The audits of synthetic data have different auxiliary fine-tunes, so their attackers are not equally strong."
    ]


def _refuse_other_settings(first: Results, second: Results) -> None:
    if not first.kind == second.kind == "audit":
        raise ConfigError("only audits can be compared: the results of `score` do not say which texts are members")
    names = sorted((first.settings.keys() | second.settings.keys()) - set(WITHOUT_EFFECT))
    for name in names:
        was, now = first.settings.get(name), second.settings.get(name)
        if was != now:
            raise ConfigError(
                f"the two audits differ in {one_line(f'{name}: {was} and {now}')}; audit both models with the same "
                "options"
            )


@dataclass(frozen=True, slots=True)
class _Texts:
    labels: Int64[np.ndarray, " _"]
    groups: Int64[np.ndarray, " _"]


def _same_texts(first: pa.Table, second: pa.Table, columns: Sequence[str]) -> _Texts:
    for column in columns:
        if first[column].to_pylist() != second[column].to_pylist():
            hint = (
                "; for texts without ids of their own, compare where both private folders are" if column == "id" else ""
            )
            raise ConfigError(
                f"the two audits differ in {column}: they must be of the same members and non-members, in one "
                f"order{hint}"
            )
    labels = first["label"].to_numpy(zero_copy_only=False)
    names = first["group"].to_pylist()
    # A text without a group stands for itself. Salts differ from audit to audit, so the first one's groups serve.
    keys = [f"{name}" if name is not None else f"#{i}" for i, name in enumerate(names)]
    _, groups = np.unique(keys, return_inverse=True)
    return _Texts(np.asarray(labels, np.int64), np.asarray(groups, np.int64))


def _scores(audit: tuple[Results, pa.Table], attack: str, which: str) -> Scores:
    (results, records), column = audit, f"score_{attack}"
    if column not in records.column_names or attack not in results.attacks:
        there = ", ".join(name for name in results.attacks if f"score_{name}" in records.column_names)
        raise ConfigError(f"the {which} audit has no scores of {one_line(attack)}; it has {one_line(there)}")
    return np.asarray(records[column].to_numpy(zero_copy_only=False), np.float64)


def _paired_difference(
    a: Scores, b: Scores, labels: np.ndarray, groups: Int64[np.ndarray, " _"], seed: int
) -> dict[str, Measure]:
    n_nonmembers = int((~labels).sum())
    if not labels.any() or not n_nonmembers:
        return {"auc": Measure(reason="members and non-members that both audits could score are needed")}
    point = _differences(a, b, labels)
    draws = [
        np.subtract(*(resampled_figures(s[labels], s[~labels], counts, FPR_TARGETS) for s in (b, a)))
        for counts in resamples([groups[labels], groups[~labels]], N_RESAMPLES, seed)
    ]
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975], axis=0)
    measures = {
        "auc": Measure(value=float(point[0]), low=float(low[0]), high=float(high[0])),
    }
    for i, fpr in enumerate(FPR_TARGETS, 1):
        enough = n_nonmembers * fpr >= FEWEST_FALSE_POSITIVES - 1e-9
        measures[f"{fpr:g}"] = (
            Measure(value=float(point[i]), low=float(low[i]), high=float(high[i]))
            if enough
            else Measure(reason=f"{n_nonmembers} non-members are too few to measure an FPR of {fpr:g}")
        )
    return measures


def _differences(a: Scores, b: Scores, labels: np.ndarray) -> np.ndarray:
    first, second = (
        [auc(s[labels], s[~labels]), *(tpr_at_fpr(s[labels], s[~labels], fpr) for fpr in FPR_TARGETS)] for s in (a, b)
    )
    return np.subtract(second, first)


def _answer(difference: Measure) -> Answer:
    if difference.low is None or difference.high is None:
        return "cannot tell"
    if difference.high < 0:
        return "yes"
    return "no" if difference.low > 0 else "cannot tell"
