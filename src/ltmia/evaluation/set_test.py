"""Was this collection used? One p-value for a set of candidates against known non-members."""

import math

import numpy as np
from jaxtyping import Int64
from scipy.stats import norm

from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Measure, SetTest
from ltmia.evaluation.roc import Scores, auc

N_PERMUTATIONS = 2000
POWER, LEVEL = 0.8, 0.05


def collection_test(
    candidates: Scores,
    nonmembers: Scores,
    *,
    candidate_groups: Int64[np.ndarray, " _"] | None = None,
    nonmember_groups: Int64[np.ndarray, " _"] | None = None,
    seed: int = 0,
) -> SetTest:
    """Test whether candidates as a whole score higher than known non-members.

    The statistic is the AUC (Mann-Whitney); its null distribution comes from permuting the two labels, whole groups
    at a time where there are groups, so that texts of one document do not count as independent evidence. One-sided;
    p = (1 + #{permuted >= observed}) / (permutations + 1). The number of candidates for a power of 80 % at the effect
    seen is Noether's (1987), for as many candidates as non-members.
    """
    effect = measure_attack(
        candidates,
        nonmembers,
        member_groups=candidate_groups,
        nonmember_groups=nonmember_groups,
        seed=seed,
    ).auc
    if effect.value is None:
        return SetTest(p_value=None, effect=effect, reason=effect.reason)
    scores = np.concatenate([candidates, nonmembers])
    side = np.repeat([True, False], [len(candidates), len(nonmembers)])
    groups = _joint_groups(len(candidates), len(nonmembers), candidate_groups, nonmember_groups)
    measured = ~np.isnan(scores)
    scores, side, groups = scores[measured], side[measured], groups[measured]
    p_value = _permutation_p(scores, side, groups, effect.value, np.random.default_rng(seed))
    return SetTest(p_value=p_value, effect=effect, n_for_power=_noether(effect))


def _permutation_p(
    scores: Scores,
    side: np.ndarray,
    groups: Int64[np.ndarray, " _"],
    observed: float,
    rng: np.random.Generator,
) -> float:
    names, index = np.unique(groups, return_inverse=True)
    is_candidate = np.zeros(len(names), np.bool_)
    is_candidate[index[side]] = True
    at_least = 0
    for _ in range(N_PERMUTATIONS):
        permuted = rng.permutation(is_candidate)[index]
        if permuted.any() and not permuted.all():
            at_least += auc(scores[permuted], scores[~permuted]) >= observed
    return (1 + at_least) / (N_PERMUTATIONS + 1)


def _joint_groups(
    n: int,
    m: int,
    candidate_groups: Int64[np.ndarray, " _"] | None,
    nonmember_groups: Int64[np.ndarray, " _"] | None,
) -> Int64[np.ndarray, " _"]:
    """Number the groups of both sides; a text without a group is its own."""
    first = np.arange(n) if candidate_groups is None else candidate_groups
    second = np.arange(m) if nonmember_groups is None else nonmember_groups
    # The two sides are kept apart even where a group stands on both: it is then permuted as two.
    return np.concatenate([first, second + first.max(initial=-1) + 1])


def _noether(effect: Measure) -> int | None:
    """Candidates needed, n = (z_a + z_b)^2 / (12 c (1 - c) (p - 1/2)^2) x c with c = 1/2 of all texts."""
    gap = (effect.value or 0.5) - 0.5
    if gap <= 0:
        return None
    quantiles = float(norm.ppf(1 - LEVEL) + norm.ppf(POWER))
    return math.ceil(quantiles**2 / (12 * 0.25 * gap**2) * 0.5)
