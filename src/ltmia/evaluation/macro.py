"""Averages over combinations: each target has equal weight, and scores of targets are not pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ltmia.evaluation.results import AttackResult, Measure

N_RESAMPLES = 2000
FIGURES = ("auc", "0.1", "0.01", "0.001")
"""AUC, and TPR at these FPRs."""

Examined = Mapping[str, AttackResult]
"""By attack, on one combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Macro:
    """One attack over several combinations."""

    attack: str
    n_combinations: int
    figures: Mapping[str, Measure]
    """By name in `FIGURES`: the mean over the combinations where it could be measured."""


def figure_of(result: AttackResult, figure: str) -> float:
    """Return one figure of a result; NaN where it could not be measured."""
    measure = result.auc if figure == "auc" else result.tpr_at_fpr[figure]
    return np.nan if measure.value is None else measure.value


def macro_averages(examined: Sequence[Examined], *, seed: int = 0) -> list[Macro]:
    """Average every attack over combinations; best AUC first.

    Intervals are 95 %, by bootstrap over combinations: the variation with other combinations of the same kind.
    """
    names = [name for name in examined[0] if all(name in one for one in examined)] if examined else []
    averages = [
        Macro(
            attack=name,
            n_combinations=len(examined),
            figures={
                figure: mean_with_interval([figure_of(one[name], figure) for one in examined], seed)
                for figure in FIGURES
            },
        )
        for name in names
    ]
    return sorted(averages, key=lambda macro: -(macro.figures["auc"].value or 0.0))


def best_rule(examined: Examined, *, leave_out: Sequence[str]) -> str:
    """Return the attack of highest AUC on one combination, of those not left out."""
    others = [name for name in examined if name not in leave_out]
    return max(others, key=lambda name: np.nan_to_num(figure_of(examined[name], "auc"), nan=-1.0))


def error_ratio(examined: Sequence[Examined], attack: str, *, leave_out: Sequence[str] = (), seed: int = 0) -> Measure:
    """Return the mean of (1 - AUC) of an attack over that of each combination's best other attack not left out."""
    ratios = []
    for one in examined:
        best = figure_of(one[best_rule(one, leave_out=[attack, *leave_out])], "auc")
        ratios.append((1 - figure_of(one[attack], "auc")) / max(1 - best, 1e-9))
    return mean_with_interval(ratios, seed)


def mean_with_interval(values: Sequence[float], seed: int = 0) -> Measure:
    """Return the mean of the values that are numbers, with its 95 % bootstrap interval."""
    measured = np.array([value for value in values if not np.isnan(value)])
    if not len(measured):
        return Measure(reason="measured on no combination")
    draws = np.random.default_rng(seed).choice(measured, (N_RESAMPLES, len(measured))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Measure(value=float(measured.mean()), low=float(low), high=float(high))
