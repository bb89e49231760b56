"""Was this collection used? One p-value for a set of candidates against known non-members."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import norm, rankdata

from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import SetTest
from ltmia.evaluation.roc import Scores, auc

N_PERMUTATIONS = 2000
PERMUTED_AT_ONCE = 100
"""Permutations at a time, so that many groups do not need a huge table."""
POWER, LEVEL = 0.8, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationTest:
    """Result of a permutation test."""

    p_value: float
    design_effect: float
    """How many times more texts are needed than if all were independent; at least 1."""


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
    p = (1 + #{permuted >= observed}) / (permutations + 1).

    The number of candidates for a power of 80 % at the effect seen is Noether's (1987), for as many candidates as
    non-members, times the design effect.
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
    found = permutation_test(scores, side, groups, seed=seed)
    return SetTest(
        p_value=found.p_value,
        effect=effect,
        n_for_power=_noether(effect.value, found.design_effect),
        reason=_too_few_groups(len(np.unique(groups[side])), len(np.unique(groups[~side]))),
    )


def permutation_test(
    scores: Scores, is_candidate: Bool[np.ndarray, " _"], groups: Int64[np.ndarray, " _"], *, seed: int = 0
) -> PermutationTest:
    """Permute which groups are candidates and which are non-members.

    The design effect is the variance of the permuted AUC over that of as many independent texts.
    """
    n, m = int(is_candidate.sum()), int((~is_candidate).sum())
    permuted = _permuted_aucs(scores, is_candidate, groups, np.random.default_rng(seed))
    observed = auc(scores[is_candidate], scores[~is_candidate])
    return PermutationTest(
        p_value=(1 + int((permuted >= observed - 1e-12).sum())) / (N_PERMUTATIONS + 1),
        design_effect=max(float(permuted.var()) / ((n + m + 1) / (12 * n * m)), 1.0),
    )


def _permuted_aucs(
    scores: Scores, side: np.ndarray, groups: Int64[np.ndarray, " _"], rng: np.random.Generator
) -> Float64[np.ndarray, " permutations"]:
    """Return the AUC after each permutation of the groups' sides, from the groups' rank sums."""
    _, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    rank_sums = np.bincount(index, rankdata(scores))
    is_candidate = np.zeros(len(sizes), np.bool_)
    is_candidate[index[side]] = True
    aucs = []
    for _ in range(N_PERMUTATIONS // PERMUTED_AT_ONCE):
        chosen = rng.permuted(np.tile(is_candidate, (PERMUTED_AT_ONCE, 1)), axis=1)
        n = chosen @ sizes
        aucs.append((chosen @ rank_sums - n * (n + 1) / 2) / (n * (len(scores) - n)))
    return np.concatenate(aucs)


def _too_few_groups(n: int, m: int) -> str | None:
    ways = math.comb(n + m, n)
    if ways >= 1 / LEVEL:  # the number of ways may be too large for a float
        return None
    return f"{n} and {m} groups can be permuted in only {ways} ways, so no p-value below {1 / ways:.2g} is possible"


def _joint_groups(
    n: int,
    m: int,
    candidate_groups: Int64[np.ndarray, " _"] | None,
    nonmember_groups: Int64[np.ndarray, " _"] | None,
) -> Int64[np.ndarray, " _"]:
    """Number the groups of both sides; a text without a group is its own."""
    first = np.arange(n) if candidate_groups is None else candidate_groups
    second = np.arange(m) if nonmember_groups is None else nonmember_groups
    # A group on both sides is permuted as two groups.
    return np.concatenate([first, second + first.max(initial=-1) + 1])


def _noether(effect: float, design_effect: float) -> int | None:
    """Candidates needed: (z_a + z_b)^2 / (12 c (1 - c) (p - 1/2)^2) x c with c = 1/2 of all texts."""
    gap = effect - 0.5
    if gap <= 0:
        return None
    quantiles = float(norm.ppf(1 - LEVEL) + norm.ppf(POWER))
    return math.ceil(quantiles**2 / (12 * 0.25 * gap**2) * 0.5 * design_effect)
