"""Shares of texts with 95 % intervals that hold for texts in groups, and the difference of two shares."""

import numpy as np
from jaxtyping import Bool, Int64
from scipy.stats import beta, t

from ltmia.evaluation.intervals import CONFIDENCE
from ltmia.evaluation.section import Measure


def share_of(hits: Bool[np.ndarray, " texts"], groups: Int64[np.ndarray, " texts"] | None = None) -> Measure:
    """Return the share of hits with its interval.

    The interval is that of Clopper and Pearson for the effective number of independent texts: n divided by the design
    effect of the groups, corrected for few groups (Korn and Graubard 1998). If all texts or none are hits, the design
    effect cannot be estimated, and each group counts as one text.

    Args:
        hits: Whether each text is a hit.
        groups: Group of each text. With None, or with a single group, every text counts as a group of its own.
    """
    n = len(hits)
    if not n:
        return Measure(reason="nothing to count")
    share = float(hits.mean())
    worth = n if groups is None else _independent_texts(hits, groups)
    tail = (1 - CONFIDENCE) / 2
    count = share * worth
    low = float(beta.ppf(tail, count, worth - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, worth - count)) if count < worth else 1.0
    return Measure(value=share, low=min(low, share), high=max(high, share))


def difference_of(first: Measure, second: Measure) -> Measure:
    """Return the difference of two independent shares; its interval follows from theirs (Zou and Donner 2008)."""
    for measure in (first, second):
        if measure.value is None or measure.low is None or measure.high is None:
            return Measure(reason=measure.reason)
    (a, a_low, a_high), (b, b_low, b_high) = (
        (m.value or 0.0, m.low or 0.0, m.high or 0.0) for m in (first, second)
    )  # none of them is None
    value = a - b
    down, up = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return Measure(value=value, low=value - float(down), high=value + float(up))


def _independent_texts(hits: Bool[np.ndarray, " texts"], groups: Int64[np.ndarray, " texts"]) -> float:
    """Return how many independent texts would give a share as uncertain as these."""
    n, share = len(hits), hits.mean()
    of_group = np.unique(groups, return_inverse=True)[1]
    n_groups = int(of_group.max()) + 1
    if n_groups == 1:
        return float(n)
    residuals = np.bincount(of_group, weights=hits - share)
    variance = n_groups / (n_groups - 1) * float(residuals @ residuals) / n**2
    if not variance:
        return float(n_groups) if share in (0.0, 1.0) else float(n)
    tail = (1 + CONFIDENCE) / 2
    few_groups = (t.ppf(tail, n - 1) / t.ppf(tail, n_groups - 1)) ** 2  # the variance itself is known from few groups
    return float(min(share * (1 - share) / variance * few_groups, n))
