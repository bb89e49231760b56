"""Rounds scores for publication, so that they reveal less about a text than full precision."""

import numpy as np

from ltmia.evaluation.roc import Scores

DIGITS = 2
"""Decimal digits kept below the leading digit of the scores' quartile range."""


def published(scores: Scores) -> Scores:
    """Round scores to a step between a thousandth and a hundredth of their quartile range.

    The step is a power of ten, the same for all scores. It is far larger than float32 noise from batches and threads,
    and far smaller than the differences between texts. Infinite and missing scores stay.

    Args:
        scores: Scores of one attack, members and non-members together: the step does not depend on labels.
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return scores
    low, high = np.quantile(finite, [0.25, 0.75])
    # Where most scores are equal, the digits are counted from the largest one.
    scale = high - low if high > low else np.abs(finite).max()
    if scale == 0:
        return scores
    # Adding 0 turns -0 into 0.
    return np.asarray(np.round(scores, DIGITS - int(np.floor(np.log10(scale)))) + 0.0)
