"""Bootstrap of AUC and TPR. A resample is a count for each text, so that one sort of the scores is enough."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array

from ltmia.evaluation.roc import Scores

COUNTS_AT_ONCE = 200_000
"""Number of resamples times number of texts in memory at a time: a few megabytes; more is not faster."""

Groups = Int64[np.ndarray, " _"]
Counts = Int64[np.ndarray, "_ _"]


def resamples(sides: Sequence[Groups], n_resamples: int, seed: int) -> Iterator[list[Counts]]:
    """Draw whole groups with replacement, as many as there are, separately for each side.

    Args:
        sides: Group of each text, for each side (members, non-members). If a side has only one group, its texts are
        drawn one by one, since the variation between groups is unknown.
        n_resamples: Number of resamples to draw.
        seed: Seed of the draws.

    Yields:
        For some resamples at a time, the number of times that each text occurs in each resample.
    """
    rng = np.random.default_rng(seed)
    indices = [_group_index(groups) for groups in sides]
    n_groups = [int(index.max()) + 1 for index in indices]
    at_once = max(1, COUNTS_AT_ONCE // sum(map(len, sides)))
    for start in range(0, n_resamples, at_once):
        drawn = [
            [np.bincount(rng.integers(0, n, n), minlength=n) for n in n_groups]
            for _ in range(min(at_once, n_resamples - start))
        ]
        yield [np.stack(side)[:, index] for side, index in zip(zip(*drawn, strict=True), indices, strict=True)]


def resampled_figures(
    members: Scores, nonmembers: Scores, counts: Sequence[Counts], fprs: Sequence[float]
) -> Float64[np.ndarray, "_ _"]:
    """Return the AUC and the TPR at each FPR for many resamples, as `roc.auc` and `roc.tpr_at_fpr` define them.

    Args:
        members: Scores of members, none of them NaN.
        nonmembers: Scores of non-members, none of them NaN.
        counts: Number of times that each member, and each non-member, stands in each resample.
        fprs: False-positive rates.
    """
    levels, level = np.unique(np.concatenate([members, nonmembers]), return_inverse=True)
    found, false = (
        count @ csr_array((np.ones(len(of)), (np.arange(len(of)), of)), shape=(len(of), len(levels)))
        for count, of in zip(counts, np.split(level, [len(members)]), strict=True)
    )
    n, m = found.sum(1), false.sum(1)
    outscored = false.cumsum(1) - false / 2  # ties count half
    figures = [(found * outscored).sum(1) / (n * m)]
    false_from_here = false[:, ::-1].cumsum(1)[:, ::-1]
    found_above = n[:, None] - np.hstack([np.zeros((len(n), 1)), found.cumsum(1)])
    for fpr in fprs:
        allowed = np.floor(fpr * m + 1e-9)
        up_to_threshold = (false_from_here > allowed[:, None]).sum(1)
        figures.append(found_above[np.arange(len(n)), up_to_threshold] / n)
    return np.stack(figures, axis=1)


def _group_index(groups: Groups) -> Groups:
    names, index = np.unique(groups, return_inverse=True)
    return index if len(names) > 1 else np.arange(len(groups))
