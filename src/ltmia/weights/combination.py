"""Adds an attack on log-probabilities to the attack on the weights, weighed by what the target itself shows.

How much each of the two says differs from target to target: on some the outputs tell more, on others the weights. The
texts themselves tell how much, without labels. Texts that the weights call used should score higher than the others;
how far the two groups lie apart, compared with their spread, is what one unit of the score is worth in log-odds.
"""

import numpy as np
from jaxtyping import Float64
from scipy.special import expit

MOST_ROUNDS = 200
"""Largest number of rounds of expectation maximisation."""
SETTLED = 1e-6
"""The rounds end when no probability changes by more than this."""
LEAST_SIZE = 1e-9
"""Least number of texts that a group is divided by."""


def add_output_score(
    log_odds: Float64[np.ndarray, " text"], score: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, " text"]:
    """Return the log-odds that each text was used, from the weights and an output score together.

    Within both groups the score is taken to be normal with one variance, around a line of one slope in the log-odds.
    This is linear discriminant analysis with unknown labels; the fit is that of Dempster, Laird and Rubin 1977. So only
    what the log-odds do not say already is added. A score that is no higher among the used texts is given no weight.
    The scale and the zero of the score do not matter.

    Args:
        log_odds: From the weights; NaN where a text has none.
        score: Score of an attack on log-probabilities, higher for a more likely member; NaN where a text has none.

    Returns:
        The sum; NaN where one of the two is missing.
    """
    known = np.isfinite(log_odds) & np.isfinite(score)
    total = np.full(len(log_odds), np.nan)
    weights, values = log_odds[known], _standardised(score[known])
    if len(values):
        total[known] = weights + _worth(weights, values)
    return total


def _standardised(score: Float64[np.ndarray, " text"]) -> Float64[np.ndarray, " text"]:
    spread = score.std() if len(score) else 0.0
    return (score - score.mean()) / spread if spread > 0 else np.zeros(len(score))


def _worth(
    log_odds: Float64[np.ndarray, " text"], values: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, " text"]:
    """Return what each standardised score adds to the log-odds."""
    added = np.zeros(len(values))
    chance = expit(log_odds)
    for _ in range(MOST_ROUNDS):
        sides = np.stack([chance, 1 - chance])
        off = _from_means(log_odds, sides)
        # Within a group, the score follows the log-odds by a common slope: that part of it says nothing new.
        slope = (sides * off * _from_means(values, sides)).sum() / max((sides * off**2).sum(), LEAST_SIZE)
        rest = values - slope * log_odds
        used, unused = _means(rest, sides)
        variance = (sides * _from_means(rest, sides) ** 2).sum() / len(values)
        worth = max(used - unused, 0.0) / variance if variance > 0 else 0.0
        added = worth * (rest - (used + unused) / 2)
        before, chance = chance, expit(log_odds + added)
        if np.abs(chance - before).max() <= SETTLED:
            break
    return added


def _means(values: Float64[np.ndarray, " text"], sides: Float64[np.ndarray, "2 text"]) -> Float64[np.ndarray, " 2"]:
    """Return the mean of each group, given the probability of each text to belong to it."""
    return sides @ values / np.maximum(sides.sum(axis=1), LEAST_SIZE)


def _from_means(
    values: Float64[np.ndarray, " text"], sides: Float64[np.ndarray, "2 text"]
) -> Float64[np.ndarray, "2 text"]:
    """Return the distance of each text from the mean of each group."""
    return values - _means(values, sides)[:, None]
