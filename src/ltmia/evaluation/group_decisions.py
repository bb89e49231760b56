"""Decisions on whole groups (patients, authors, documents), valid for all sizes and for dependent texts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ltmia.evaluation.conformal import RecordDecisions, conformal_p_values, flag
from ltmia.evaluation.roc import Scores

Groups = Int64[np.ndarray, " _"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDecisions:
    """Decisions on each group with a scorable text, as arrays of equal length."""

    numbers: Int64[np.ndarray, " groups"]
    n_texts: Int64[np.ndarray, " groups"]
    """Number of scorable texts of each group."""
    n_compared: Int64[np.ndarray, " groups"]
    """Number of texts of each group, and of each calibration group, whose mean scores are compared."""
    n_calibration: Int64[np.ndarray, " groups"]
    """Number of calibration groups with at least that many texts."""
    decisions: RecordDecisions
    """p-value, q-value and flag of each group."""

    @property
    def flagged(self) -> Int64[np.ndarray, " flagged"]:
        """Numbers of the flagged groups."""
        return self.numbers[self.decisions.flagged]

    @property
    def smallest_p(self) -> float:
        """Smallest p-value that any group could have."""
        return 1 / (int(self.n_calibration.max(initial=0)) + 1)


def judge_groups(
    scores: Scores, groups: Groups, calibration: Scores, calibration_groups: Groups, fdr: float, seed: int = 0
) -> GroupDecisions:
    """Judge each group by the mean score of its texts, against means of equally many texts of unused groups.

    The mean of few texts varies more than that of many, so only means over equal numbers of texts are comparable.
    For a group of s texts, k = min(s, m), where half of the calibration groups have m texts or more. k texts drawn from
    the group are compared with k texts drawn from each calibration group that has as many. If the texts of an unused
    group are like those of a calibration group, the k + k x n_calibration scores are exchangeable group by group, and
    the conformal p-value holds: P(p <= a) <= a for all sizes, and for any dependence within a group.

    Args:
        scores: Scores of the texts to judge; NaN is left out.
        groups: Group of each.
        calibration: Scores of known non-members; NaN is left out.
        calibration_groups: Group of each.
        fdr: False discovery rate to flag groups at (Benjamini-Hochberg).
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    judged, known = _Drawn.of(scores, groups, rng), _Drawn.of(calibration, calibration_groups, rng)
    common = int(np.sort(known.sizes)[len(known.sizes) // 2]) if len(known.sizes) else 1
    n_compared = np.minimum(judged.sizes, common)
    p_values, n_calibration = np.full(len(judged.sizes), np.nan), np.zeros(len(judged.sizes), np.int64)
    for k in np.unique(n_compared) if len(known.sizes) else ():
        rows = n_compared == k
        against = known.means(int(k))
        p_values[rows] = conformal_p_values(judged.means(int(k))[rows[judged.sizes >= k]], against)
        n_calibration[rows] = len(against)
    return GroupDecisions(
        numbers=judged.numbers,
        n_texts=judged.sizes,
        n_compared=n_compared,
        n_calibration=n_calibration,
        decisions=flag(p_values, fdr),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Groups with their texts in random order."""

    numbers: Int64[np.ndarray, " groups"]
    sizes: Int64[np.ndarray, " groups"]
    scores: Scores
    """Rows of all texts, group by group."""
    place: Int64[np.ndarray, " texts"]
    """Index of each text in its group, from 0."""

    @classmethod
    def of(cls, scores: Scores, groups: Groups, rng: np.random.Generator) -> "_Drawn":
        usable = rng.permutation(np.flatnonzero(~np.isnan(scores)))
        order = usable[np.argsort(groups[usable], kind="stable")]
        numbers, sizes = np.unique(groups[order], return_counts=True)
        starts = np.cumsum(sizes) - sizes
        return cls(numbers, sizes, scores[order], np.arange(len(order)) - np.repeat(starts, sizes))

    def means(self, k: int) -> Float64[np.ndarray, " large_enough"]:
        """Return the mean of the first k texts of each group that has as many."""
        taken = np.repeat(self.sizes >= k, self.sizes) & (self.place < k)
        return self.scores[taken].reshape(-1, k).mean(axis=1)
