"""How well an attack does, with 95 % intervals: stratified bootstrap over groups, exact binomial at the edges."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import binomtest

from ltmia.evaluation.results import AttackResult, Measure
from ltmia.evaluation.roc import Scores, auc, measurable, threshold_at_fpr, tpr_at_fpr

FPR_TARGETS = (0.1, 0.01, 0.001)
CONFIDENCE = 0.95
FEWEST_FALSE_POSITIVES = 10
"""TPR at an FPR is given only where this many non-members may be false positives."""


def measure_attack(
    members: Scores,
    nonmembers: Scores,
    *,
    member_groups: Int64[np.ndarray, " _"] | None = None,
    nonmember_groups: Int64[np.ndarray, " _"] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> AttackResult:
    """Measure one attack: AUC, TPR at each FPR, the FPR taken, each with its interval.

    The bootstrap draws members and non-members apart, whole groups at a time where there are groups, and every
    resample goes through the code of the point value.

    Args:
        members: Scores of members, NaN where unscorable.
        nonmembers: Scores of non-members.
        member_groups: Group of each member; every text is its own group when None.
        nonmember_groups: Group of each non-member.
        n_resamples: Bootstrap resamples.
        seed: Of the resampling.
    """
    kept = [
        _measurable_groups(scores, groups)
        for scores, groups in ((members, member_groups), (nonmembers, nonmember_groups))
    ]
    (members, member_parts), (nonmembers, nonmember_parts) = kept
    if not len(members) or not len(nonmembers):
        missing = "members" if not len(members) else "non-members"
        nothing = Measure(reason=f"no scorable {missing}")
        return AttackResult(auc=nothing, tpr_at_fpr={str(f): nothing for f in FPR_TARGETS})
    rng = np.random.default_rng(seed)
    resampled = [_figures(_resample(member_parts, rng), _resample(nonmember_parts, rng)) for _ in range(n_resamples)]
    low, high = np.quantile(np.array(resampled), [0.025, 0.975], axis=0)
    points = _figures(members, nonmembers)
    n, m = len(members), len(nonmembers)
    measures = [
        _widened(point, float(low[i]), float(high[i]), min(n, m) if i == 0 else n) for i, point in enumerate(points)
    ]
    tpr = {str(fpr): _tpr_or_reason(measure, fpr, m) for fpr, measure in zip(FPR_TARGETS, measures[1:], strict=True)}
    return AttackResult(
        auc=measures[0],
        tpr_at_fpr=tpr,
        realized_fpr={str(fpr): realized_fpr(nonmembers, fpr) for fpr in FPR_TARGETS},
    )


def realized_fpr(nonmembers: Scores, fpr: float) -> Measure:
    """Return the false-positive rate really taken at the threshold for `fpr`, Clopper-Pearson interval."""
    nonmembers = measurable(nonmembers)
    count = int((nonmembers > threshold_at_fpr(nonmembers, fpr)).sum())
    return proportion(count, len(nonmembers))


def proportion(count: int, n: int) -> Measure:
    """Return count / n with its exact (Clopper-Pearson) 95 % interval."""
    if not n:
        return Measure(reason="nothing to count")
    interval = binomtest(count, n).proportion_ci(CONFIDENCE, "exact")
    return Measure(value=count / n, low=float(interval.low), high=float(interval.high))


def _figures(members: Scores, nonmembers: Scores) -> list[float]:
    return [
        auc(members, nonmembers),
        *(tpr_at_fpr(members, nonmembers, fpr) for fpr in FPR_TARGETS),
    ]


def _tpr_or_reason(measure: Measure, fpr: float, n_nonmembers: int) -> Measure:
    if n_nonmembers * fpr >= FEWEST_FALSE_POSITIVES - 1e-9:
        return measure
    needed = int(np.ceil(FEWEST_FALSE_POSITIVES / fpr - 1e-9))
    return Measure(reason=f"{n_nonmembers} non-members cannot resolve an FPR of {fpr:g}; {needed} are needed")


def _widened(point: float, low: float, high: float, n: int) -> Measure:
    """At 0 and 1 every resample agrees and the bootstrap interval collapses: take the exact binomial bound there."""
    if point in (0.0, 1.0):
        exact = proportion(round(point * n), n)
        low, high = min(low, exact.low or 0.0), max(high, exact.high or 1.0)
    return Measure(value=point, low=min(low, point), high=max(high, point))


def _measurable_groups(scores: Scores, groups: Int64[np.ndarray, " _"] | None) -> tuple[Scores, list[Scores]]:
    """Return the measurable scores, whole and cut by group."""
    usable = ~np.isnan(scores)
    scores = scores[usable]
    if groups is None:
        return scores, [scores]
    order = np.argsort(groups[usable], kind="stable")
    _, starts = np.unique(groups[usable][order], return_index=True)
    return scores, np.split(scores[order], starts[1:])


def _resample(parts: list[Scores], rng: np.random.Generator) -> Float64[np.ndarray, " _"]:
    """Draw groups with replacement; a single part stands for texts without groups."""
    if len(parts) == 1:
        return rng.choice(parts[0], len(parts[0]))
    return np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))])
