"""Measures an attack with 95 % intervals: stratified bootstrap over groups, exact binomial near 0 and 1."""

import numpy as np
from scipy.stats import binomtest

from ltmia.evaluation.bootstrap import Groups, resampled_figures, resamples
from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.roc import Scores, auc, measurable, threshold_at_fpr, tpr_at_fpr
from ltmia.evaluation.section import Measure

FPR_TARGETS = (0.1, 0.01, 0.001)
CONFIDENCE = 0.95
FEWEST_FALSE_POSITIVES = 10
"""TPR at an FPR is reported only if at least this many non-members may be false positives."""


def measure_attack(
    members: Scores,
    nonmembers: Scores,
    *,
    member_groups: Groups | None = None,
    nonmember_groups: Groups | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> AttackResult:
    """Measure one attack: AUC, TPR at each FPR and the actual FPR, each with its interval.

    The bootstrap draws members and non-members separately, and whole groups if there are groups.

    Args:
        members: Scores of members, NaN where unscorable.
        nonmembers: Scores of non-members.
        member_groups: Group of each member; every text is its own group when None.
        nonmember_groups: Group of each non-member.
        n_resamples: Bootstrap resamples.
        seed: Seed of the resampling.
    """
    (members, member_groups), (nonmembers, nonmember_groups) = (
        _measurable(scores, groups) for scores, groups in ((members, member_groups), (nonmembers, nonmember_groups))
    )
    n, m = len(members), len(nonmembers)
    if not n or not m:
        nothing = Measure(reason=f"no scorable {'non-members' if n else 'members'}")
        tpr = {str(fpr): nothing for fpr in FPR_TARGETS}
        return AttackResult(auc=nothing, tpr_at_fpr=tpr, n_members=n, n_nonmembers=m)
    resampled = [
        resampled_figures(members, nonmembers, counts, FPR_TARGETS)
        for counts in resamples([member_groups, nonmember_groups], n_resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975], axis=0)
    points = [auc(members, nonmembers), *(tpr_at_fpr(members, nonmembers, fpr) for fpr in FPR_TARGETS)]
    measures = [
        _widened(point, float(low[i]), float(high[i]), min(n, m) if i == 0 else n) for i, point in enumerate(points)
    ]
    tpr = {str(fpr): _tpr_or_reason(measure, fpr, m) for fpr, measure in zip(FPR_TARGETS, measures[1:], strict=True)}
    return AttackResult(
        auc=measures[0],
        tpr_at_fpr=tpr,
        realized_fpr={str(fpr): realized_fpr(nonmembers, fpr) for fpr in FPR_TARGETS},
        n_members=n,
        n_nonmembers=m,
    )


def realized_fpr(nonmembers: Scores, fpr: float) -> Measure:
    """Return the actual false-positive rate at the threshold for `fpr`, with its Clopper-Pearson interval."""
    nonmembers = measurable(nonmembers)
    count = int((nonmembers > threshold_at_fpr(nonmembers, fpr)).sum())
    return proportion(count, len(nonmembers))


def proportion(count: int, n: int) -> Measure:
    """Return count / n with its exact (Clopper-Pearson) 95 % interval."""
    if not n:
        return Measure(reason="nothing to count")
    interval = binomtest(count, n).proportion_ci(CONFIDENCE, "exact")
    return Measure(value=count / n, low=float(interval.low), high=float(interval.high))


def _tpr_or_reason(measure: Measure, fpr: float, n_nonmembers: int) -> Measure:
    if n_nonmembers * fpr >= FEWEST_FALSE_POSITIVES - 1e-9:
        return measure
    needed = int(np.ceil(FEWEST_FALSE_POSITIVES / fpr - 1e-9))
    return Measure(reason=f"{n_nonmembers} non-members are too few to measure an FPR of {fpr:g}; {needed:,} are needed")


def _widened(point: float, low: float, high: float, n: int) -> Measure:
    """Let no interval end closer to 0 or 1 than the exact binomial one of n out of n texts.

    There, resamples agree and the bootstrap interval has hardly any width.
    """
    edge = proportion(n, n).low or 0.0
    return Measure(value=point, low=min(low, edge, point), high=max(high, 1 - edge, point))


def _measurable(scores: Scores, groups: Groups | None) -> tuple[Scores, Groups]:
    """Leave out unscorable texts; a text without a group is its own group."""
    usable = ~np.isnan(scores)
    return scores[usable], np.arange(usable.sum()) if groups is None else groups[usable]
