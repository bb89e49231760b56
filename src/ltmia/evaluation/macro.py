"""Averages over combinations: every target has equal weight, and scores of different targets are not pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.section import Measure

N_RESAMPLES = 2000
FIGURES = ("auc", "0.1", "0.01", "0.001")
"""AUC, and TPR at these FPRs."""

CombinationResults = Mapping[str, AttackResult]
"""Result of each attack on one combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Macro:
    """One attack over several combinations."""

    attack: str
    n_combinations: int
    figures: Mapping[str, Measure]
    """Mean of each of `FIGURES` over the combinations in which it could be measured."""


def figure_of(result: AttackResult, figure: str) -> float:
    """Return one figure of a result; NaN where it could not be measured."""
    measure = result.auc if figure == "auc" else result.tpr_at_fpr[figure]
    return np.nan if measure.value is None else measure.value


def macro_averages(results: Sequence[CombinationResults], *, seed: int = 0) -> list[Macro]:
    """Average every attack over combinations; the best AUC comes first.

    Intervals are 95 %, by bootstrap over combinations: they show how far other combinations of this kind would differ.
    """
    names = [name for name in results[0] if all(name in one for one in results)] if results else []
    averages = [
        Macro(
            attack=name,
            n_combinations=len(results),
            figures={
                figure: mean_with_interval([figure_of(one[name], figure) for one in results], seed)
                for figure in FIGURES
            },
        )
        for name in names
    ]
    return sorted(averages, key=lambda macro: -(macro.figures["auc"].value or 0.0))


def best_rule(results: CombinationResults, *, leave_out: Sequence[str]) -> str:
    """Return the attack with the highest AUC on one combination, except those left out."""
    others = [name for name in results if name not in leave_out]
    return max(others, key=lambda name: np.nan_to_num(figure_of(results[name], "auc"), nan=-1.0))


def error_ratio(
    results: Sequence[CombinationResults], attack: str, *, leave_out: Sequence[str] = (), seed: int = 0
) -> Measure:
    """Return the mean over combinations of (1 - AUC) of an attack, divided by that of the best other attack."""
    ratios = []
    for one in results:
        best = figure_of(one[best_rule(one, leave_out=[attack, *leave_out])], "auc")
        ratios.append((1 - figure_of(one[attack], "auc")) / max(1 - best, 1e-9))
    return mean_with_interval(ratios, seed)


def mean_with_interval(values: Sequence[float], seed: int = 0) -> Measure:
    """Return the mean of the values that are not NaN, with its 95 % bootstrap interval."""
    measured = np.array([value for value in values if not np.isnan(value)])
    if not len(measured):
        return Measure(reason="measured on no combination")
    draws = np.random.default_rng(seed).choice(measured, (N_RESAMPLES, len(measured))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Measure(value=float(measured.mean()), low=float(low), high=float(high))
