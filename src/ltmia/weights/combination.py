"""Adds the score of the learned attack to the attack on the weights, weighed by what the texts show without labels.

The learned attack was trained on many targets of known membership, so one unit of its score is worth about the same on
each. How much the coefficients of the update tell differs from target to target. So the learned score says how likely
each text was used, and a mixture of two regressions finds how far the coefficients of used and unused texts lie apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq
from scipy.special import expit, log_expit
from sklearn.mixture import GaussianMixture

LOGIT_WORTH = 0.5
"""Log-odds that one unit of the learned attack's score is worth at least: its logit counts some of the evidence twice.
At most it is worth 1, as a calibrated logit is."""
GROUPS_WORTH = 0.6
"""Share of the worth that two groups of scores show, which is believed: two normal groups do not describe them well."""
LEAST_GROUP, LEAST_EVIDENCE = 0.05, 10.0
"""Least share of the texts in each group, and least gain in BIC, for scores to be in two groups."""
FEWEST_TO_GROUP = 20
"""With fewer texts, no groups are looked for."""
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
"""Shares of used texts that are tried, all equally likely beforehand."""
MOST_APART, HALF_TEXTS, APART_SPREAD = 1.5, 400, 0.4
"""Prior of the distance of used from unused coefficients, in standard deviations of all coefficients. Its mean is
MOST_APART with very many texts and half of that with HALF_TEXTS, because few texts cannot take out of the update what
all texts have in common; APART_SPREAD is its standard deviation. Both are smaller where coefficients hold noise."""
LEAST_TOLD = 1e-3
"""Least share of the coefficients' variance that is taken to be more than noise."""
COMMON_SLOPE, SLOPE_SPREAD = 0.25, 0.07
"""Prior of the slope, mean and standard deviation: within both groups, coefficients rise with the learned score."""
FAR_OUT = 5.0
"""Distance from the median, in standard deviations, beyond which a coefficient counts for less; the farthest counts as
if it were one more away. A text that was used many times has one many times as large, which hides all others."""
MOST_ROUNDS = 200
"""Largest number of rounds of expectation maximisation."""
SETTLED = 1e-6
"""The rounds end when no probability changes by more than this."""


def add_output_score(
    alpha: Float64[np.ndarray, " text"],
    standard_error: Float64[np.ndarray, " text"],
    logit: Float64[np.ndarray, " text"],
) -> Float64[np.ndarray, " text"]:
    """Return the log-odds that each text was used, from its coefficient and the learned score together.

    Model: a text was used with log-odds a + w x logit. Its coefficient is normal with one variance, around a line of
    slope in the logit; the line of used texts lies higher. For each share of used texts, expectation maximisation finds
    the most likely lines (Dempster, Laird and Rubin 1977), under a normal prior from validation targets. The log-odds
    are averaged over the shares by their likelihood. Unit and zero of alpha do not matter. Coefficients far out are
    drawn in first.

    Args:
        alpha: Coefficient of each text's gradient in the update; NaN where a text has none.
        standard_error: Standard error of each coefficient: if they vary no more than that, they tell nothing.
        logit: Score of the learned attack; NaN where a text has none.

    Returns:
        The log-odds; NaN where one of the two is missing.
    """
    known = np.isfinite(alpha) & np.isfinite(logit)
    total = np.full(len(alpha), np.nan)
    if known.any():
        drawn_in, error = _draw_in(alpha[known], standard_error[known])
        values, score = _standardised(drawn_in), logit[known]
        told = _share_beyond_noise(drawn_in, error)
        expected = MOST_APART * told**0.5 * len(values) / (len(values) + HALF_TEXTS)
        evidence, distance = logit_worth(score) * (score - score.mean()), (expected, APART_SPREAD * told**0.5)
        fits = [_fit(values, evidence, share, distance) for share in SHARES]
        likely = np.array([fit.log_likelihood for fit in fits])
        weights = np.exp(likely - likely.max())
        total[known] = weights @ np.stack([fit.log_odds for fit in fits]) / weights.sum()
    return total


def logit_worth(logit: Float64[np.ndarray, " text"]) -> float:
    """Return the log-odds that one unit of the learned score is worth.

    Where the scores plainly fall into two groups, a strong fine-tune was seen through, and a unit is worth more. Of two
    normal groups with one variance, it is worth their distance over the variance.
    """
    line, spread = _standardised(logit)[:, None], logit.std()
    if len(logit) < FEWEST_TO_GROUP or spread == 0:
        return LOGIT_WORTH
    one, two = (GaussianMixture(n, covariance_type="tied", n_init=n, random_state=0).fit(line) for n in (1, 2))
    if two.weights_.min() < LEAST_GROUP or one.bic(line) - two.bic(line) < LEAST_EVIDENCE:
        return LOGIT_WORTH
    shown = np.ptp(two.means_) / two.covariances_[0, 0] / spread
    return float(np.clip(GROUPS_WORTH * shown, LOGIT_WORTH, 1.0))


def _standardised(values: Float64[np.ndarray, " text"]) -> Float64[np.ndarray, " text"]:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))


def _draw_in(
    alpha: Float64[np.ndarray, " text"], standard_error: Float64[np.ndarray, " text"]
) -> tuple[Float64[np.ndarray, " text"], Float64[np.ndarray, " text"]]:
    """Draw coefficients that lie far out nearer to the others, in the same order, and return their standard errors too.

    One standard deviation is the median distance from the median over that of a standard normal (.6745).
    """
    off = alpha - np.median(alpha)
    spread = float(np.median(np.abs(off))) / 0.6745
    if spread == 0:
        return alpha, standard_error
    edge = FAR_OUT * spread
    with np.errstate(over="ignore"):
        nearer = 1 / (1 + np.maximum(np.abs(off) - edge, 0.0) / spread)
    return np.clip(off, -edge, edge) + np.sign(off) * spread * (1 - nearer), standard_error * nearer**2


def _share_beyond_noise(alpha: Float64[np.ndarray, " text"], standard_error: Float64[np.ndarray, " text"]) -> float:
    """Return the share of the coefficients' variance that the noise of the update does not explain."""
    variance = alpha.var()
    return float(np.clip(1 - np.mean(standard_error**2) / variance, LEAST_TOLD, 1)) if variance > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The most likely lines of used and unused texts, for one share of used texts."""

    log_odds: Float64[np.ndarray, " text"]
    log_likelihood: float
    """With the priors of distance, slope and variance."""


def _fit(
    values: Float64[np.ndarray, " text"],
    evidence: Float64[np.ndarray, " text"],
    share: float,
    distance: tuple[float, float],
) -> _Fit:
    """Fit for one share of used texts.

    Args:
        values: Coefficients, standardised.
        evidence: Log-odds by the learned score, up to one number for all.
        share: Share of used texts.
        distance: Mean and standard deviation of the prior.
    """
    n, line = len(values), _standardised(evidence)
    before = _with_mean(evidence, share)
    expected = np.array([0.0, distance[0], COMMON_SLOPE])
    certainty = np.array([0.0, distance[1] ** -2, SLOPE_SPREAD**-2])
    level, apart, slope, variance = -share * expected[1], expected[1], expected[2], 1.0
    chance = np.full(n, share)
    for _ in range(MOST_ROUNDS):
        rest = values - level - slope * line
        odds = before + apart / variance * (rest - apart / 2)
        last, chance = chance, expit(odds)
        if np.abs(chance - last).max() <= SETTLED:
            break
        # Least squares for level, distance and slope, where each text counts on both lines by its probability.
        used, crossed = chance.sum(), chance @ line
        squares = np.array([[n, used, 0.0], [used, used, crossed], [0.0, crossed, line @ line]])
        sums = np.array([0.0, chance @ values, line @ values])
        prior = variance * certainty
        level, apart, slope = np.linalg.solve(squares + np.diag(prior), sums + prior * expected)
        apart = max(apart, 0.0)
        rest = values - level - slope * line
        # One more text, with the variance of all, keeps the variance of few texts above zero.
        variance = (1 + (1 - chance) @ rest**2 + chance @ (rest - apart) ** 2) / (n + 1)
    likelihood = np.logaddexp(
        log_expit(-before) - rest**2 / (2 * variance), log_expit(before) - (rest - apart) ** 2 / (2 * variance)
    ).sum()
    prior_log = -0.5 * (certainty * (np.array([level, apart, slope]) - expected) ** 2).sum() - 0.5 / variance
    return _Fit(log_odds=odds, log_likelihood=float(likelihood + prior_log - 0.5 * (n + 1) * np.log(variance)))


def _with_mean(evidence: Float64[np.ndarray, " text"], share: float) -> Float64[np.ndarray, " text"]:
    """Add one number to log-odds so that their probabilities have a given mean."""
    edge = 50.0 + np.abs(evidence).max()
    return evidence + brentq(lambda moved: float(expit(evidence + moved).mean()) - share, -edge, edge)
