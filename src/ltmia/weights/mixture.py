"""Splits texts into used and unused by their coefficients, and estimates how many there are of each.

Texts that were trained on have about the same coefficient, learning rate x passes / batch size; the others have zero.
Both groups vary: a schedule lowers the coefficients of late texts, and errors of the linear model look like small
coefficients.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import multivariate_t

from ltmia.weights.solve import ReducedEquations, with_diagonal

SWEEPS = 8
"""Rounds of expectation propagation."""
DAMPING = 0.7
"""Damping: share of a round's change that is applied."""
BOUNDS = ((-9.0, 9.0), (1e-3, 30.0), (-6.0, 0.0), (-9.0, 2.0))
"""Bounds of the fitted parameters. The extra standard deviation of used texts is at most their mean, because no text
was used a negative number of times; a learning rate that falls linearly to zero gives .58 of the mean."""
FIRST_SHARES = (0.05, 0.3, 0.7, 0.95)
"""Shares of used texts from which the fit starts."""
WEAK_PRECISION = 1e-2
"""Precision added to that of the parameters, in case the estimates do not determine one of them."""
QUANTILE = 0.975
"""The interval for the number of used texts lies between this quantile and its counterpart."""
DRAWS, TAIL_DF = 600, 4
"""Draws of the groups' parameters, and degrees of freedom of their tails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoGroups:
    """Two groups of coefficients: N(0, unused_spread^2), and N(used_mean, used_spread^2), at least as wide."""

    share: float
    """Share of texts that were used."""
    used_mean: float
    used_spread: float
    unused_spread: float
    covariance: Float64[np.ndarray, "4 4"]
    """Covariance of the fitted parameters, in the form in which they are fitted."""
    parameters: Float64[np.ndarray, " 4"]
    """Logit of the share, used_mean / scale, log(own spread of the used / used_mean), log(unused_spread / scale)."""
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Estimates of which texts were used, and how many."""

    log_odds: Float64[np.ndarray, " text"]
    """Log-odds that each text was used."""
    posterior: Float64[np.ndarray, " text"]
    """The same as a probability."""
    n_used: float
    """Expected number of used texts: the sum of the posteriors."""
    n_used_low: float
    """Lower end of its 95 % interval."""
    n_used_high: float
    """Upper end of its 95 % interval."""
    estimate: Float64[np.ndarray, " text"]
    """Estimate of each text's coefficient from the update alone, without its prior."""
    error: Float64[np.ndarray, " text"]
    """Standard error of `estimate`."""
    groups: TwoGroups


def estimates_alone(equations: ReducedEquations) -> tuple[Float64[np.ndarray, " text"], Float64[np.ndarray, " text"]]:
    """Return each text's coefficient as the update alone tells it, and its variance, by expectation propagation.

    All other texts have the two-group prior. Each round removes each text's own prior from the joint Gaussian, fits the
    groups to the rest, and puts the updated prior back (Minka 2001; Hernandez-Lobato et al. 2013 for spikes).

    Args:
        equations: Products and match of the texts' mean gradients.
    """
    n = len(equations.match)
    products, match = equations.products / equations.noise, equations.match / equations.noise
    precision = np.full(n, equations.ridge / equations.noise)
    pull = np.zeros(n)
    groups: TwoGroups | None = None
    for sweep in range(SWEEPS):
        estimate, variance = _cavities(products, match, precision, pull)
        groups = fit_groups(estimate, variance, groups)
        mean, spread = _tilted_moments(estimate, variance, groups)
        wanted = 1 / spread - 1 / variance
        wanted_pull = mean / spread - estimate / variance
        # A negative precision is not a proper prior; a broad one is used instead.
        keep = wanted > 0
        share = 1.0 if sweep == 0 else DAMPING
        precision = np.where(keep, precision + share * (wanted - precision), precision)
        pull = np.where(keep, pull + share * (wanted_pull - pull), pull)
    return _cavities(products, match, precision, pull)


def count_used(
    estimate: Float64[np.ndarray, " text"],
    variance: Float64[np.ndarray, " text"],
    groups: TwoGroups,
    seed: int = 0,
) -> Usage:
    """Return posteriors, and the number of used texts with an interval.

    Both average over the uncertainty of the two groups: draws around the best fit, weighted by their likelihood and a
    prior under which every share of used texts is equally likely. Given the groups, memberships are independent.

    Args:
        estimate: Estimate of each text's coefficient.
        variance: Variance of each estimate.
        groups: The best fit.
        seed: Seed of the draws.
    """
    values, noise = estimate / groups.scale, variance / groups.scale**2
    rng = np.random.default_rng(seed)
    draws, weights = _draw_groups(groups, values, noise, rng)
    log_odds, posterior, counts = np.zeros(len(values)), np.zeros(len(values)), np.empty(len(draws), np.int64)
    for number, (draw, weight) in enumerate(zip(draws, weights, strict=True)):
        odds = _rising_log_odds(draw, values, noise)
        chances = expit(odds)
        counts[number] = (rng.random(len(chances)) < chances).sum()
        log_odds += weight * odds
        posterior += weight * chances
    order = np.argsort(counts, kind="stable")
    reached = np.cumsum(weights[order])
    low, high = (float(counts[order][np.searchsorted(reached, q)]) for q in (1 - QUANTILE, QUANTILE))
    return Usage(
        log_odds=log_odds,
        posterior=posterior,
        n_used=float(posterior.sum()),
        n_used_low=low,
        n_used_high=high,
        estimate=estimate,
        error=np.sqrt(variance),
        groups=groups,
    )


def _draw_groups(
    groups: TwoGroups,
    values: Float64[np.ndarray, " text"],
    noise: Float64[np.ndarray, " text"],
    rng: np.random.Generator,
) -> tuple[Float64[np.ndarray, "draw 4"], Float64[np.ndarray, " draw"]]:
    """Draw parameters about the best fit, from Student's t; their weights turn them into draws of the posterior."""
    low, high = np.array(BOUNDS).T
    centre, covariance = groups.parameters, groups.covariance
    tails = multivariate_t(centre, covariance, df=TAIL_DF, seed=rng)
    draws = np.vstack([centre, tails.rvs(DRAWS)])
    draws = draws[((draws >= low) & (draws <= high)).all(axis=1)]
    shares = log_expit(draws[:, 0]) + log_expit(-draws[:, 0])
    likelihood = np.array([-_badness(draw, values, noise)[0] for draw in draws])
    logs = likelihood + shares - tails.logpdf(draws).reshape(-1)
    weights = np.exp(logs - logs.max())
    return draws, weights / weights.sum()


def fit_groups(
    estimate: Float64[np.ndarray, " text"],
    variance: Float64[np.ndarray, " text"],
    before: TwoGroups | None = None,
) -> TwoGroups:
    """Fit both groups to estimates of known variance by maximum likelihood.

    Args:
        estimate: Estimate of each text's coefficient.
        variance: Variance of each estimate.
        before: Earlier fit of nearly the same estimates, as the starting point.
    """
    scale = float(np.sqrt(np.mean(estimate**2))) or 1.0
    values, noise = estimate / scale, variance / scale**2
    if before is None:
        starts = [_start(values, share) for share in FIRST_SHARES]
    else:
        ratio = before.scale / scale
        starts = [before.parameters * (1, ratio, 1, 1) + (0, 0, 0, np.log(ratio))]
    found = [minimize(_badness, point, (values, noise), jac=True, method="L-BFGS-B", bounds=BOUNDS) for point in starts]
    best = min(found, key=lambda result: result.fun)
    parameters = np.asarray(best.x)
    share, mean, used, unused = _unpacked(parameters)
    return TwoGroups(
        share=share,
        used_mean=mean * scale,
        used_spread=used * scale,
        unused_spread=unused * scale,
        covariance=_covariance(parameters, values, noise),
        parameters=parameters,
        scale=scale,
    )


def _start(values: Float64[np.ndarray, " text"], share: float) -> Float64[np.ndarray, " 4"]:
    """Return starting values, with the largest estimates as the used texts."""
    top = float(np.quantile(values, 1 - share / 2))
    return np.array([np.log(share / (1 - share)), max(top, 0.1), -1.0, -2.0])


def _unpacked(parameters: Float64[np.ndarray, " 4"]) -> tuple[float, float, float, float]:
    """Return share, mean and both spreads; errors of the linear model widen both groups equally."""
    logit, mean, ratio, unused = parameters
    used = np.hypot(mean * np.exp(ratio), np.exp(unused))
    return float(expit(logit)), float(mean), float(used), float(np.exp(unused))


def _log_densities(
    parameters: Float64[np.ndarray, " 4"], values: Float64[np.ndarray, " text"], noise: Float64[np.ndarray, " text"]
) -> tuple[Float64[np.ndarray, " text"], Float64[np.ndarray, " text"]]:
    """Return log(1 - share) + log density among the unused, and the same for the used."""
    _, mean, used, unused = _unpacked(parameters)
    nothing, something = (
        -0.5 * ((values - centre) ** 2 / wide + np.log(2 * np.pi * wide))
        for centre, wide in ((0.0, noise + unused**2), (mean, noise + used**2))
    )
    return log_expit(-parameters[0]) + nothing, log_expit(parameters[0]) + something


def _log_odds(
    parameters: Float64[np.ndarray, " 4"], values: Float64[np.ndarray, " text"], noise: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, " text"]:
    nothing, something = _log_densities(parameters, values, noise)
    return something - nothing


def _rising_log_odds(
    parameters: Float64[np.ndarray, " 4"], values: Float64[np.ndarray, " text"], noise: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, " text"]:
    """Return log-odds that rise with the coefficient everywhere.

    Of two normal groups, the wider one is also the likelier one far below both. But no text was used a negative number
    of times. So below their lowest point the log-odds are turned over: they go on falling as they would have risen.
    """
    _, mean, used, unused = _unpacked(parameters)
    wide, narrow = noise + used**2, noise + unused**2
    with np.errstate(divide="ignore"):  # groups of one width have no lowest point
        lowest = -mean * narrow / (wide - narrow)
    below = values < lowest
    turned = _log_odds(parameters, np.where(below, 2 * lowest - values, values), noise)
    at_lowest = _log_odds(parameters, np.where(below, lowest, values), noise)
    return np.where(below, 2 * at_lowest - turned, turned)


def _badness(
    parameters: Float64[np.ndarray, " 4"], values: Float64[np.ndarray, " text"], noise: Float64[np.ndarray, " text"]
) -> tuple[float, Float64[np.ndarray, " 4"]]:
    """Return minus the log-likelihood, and its gradient."""
    nothing, something = _log_densities(parameters, values, noise)
    share, mean, used, unused = _unpacked(parameters)
    p = expit(something - nothing)
    wide, narrow = noise + used**2, noise + unused**2
    off = values - mean
    by_wide = 0.5 * p * (off**2 / wide**2 - 1 / wide)
    by_narrow = 0.5 * (1 - p) * (values**2 / narrow**2 - 1 / narrow)
    own = used**2 - unused**2
    gradient = np.array(
        [
            (p - share).sum(),
            (p * off / wide).sum() + by_wide.sum() * 2 * own / mean,
            by_wide.sum() * 2 * own,
            (by_wide.sum() + by_narrow.sum()) * 2 * unused**2,
        ]
    )
    return -float(np.logaddexp(nothing, something).sum()), -gradient


def _covariance(
    parameters: Float64[np.ndarray, " 4"], values: Float64[np.ndarray, " text"], noise: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, "4 4"]:
    step = 1e-4
    rows = [
        (_badness(parameters + move, values, noise)[1] - _badness(parameters - move, values, noise)[1]) / (2 * step)
        for move in step * np.eye(4)
    ]
    hessian = np.array(rows)
    sizes, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    return (axes / (np.maximum(sizes, 0.0) + WEAK_PRECISION)) @ axes.T


def _cavities(
    products: Float64[np.ndarray, "text text"],
    match: Float64[np.ndarray, " text"],
    precision: Float64[np.ndarray, " text"],
    pull: Float64[np.ndarray, " text"],
) -> tuple[Float64[np.ndarray, " text"], Float64[np.ndarray, " text"]]:
    """Return mean and variance of each text's coefficient with its own prior taken out."""
    joint = np.linalg.inv(with_diagonal(products, precision))
    mean, variance = joint @ (match + pull), np.diag(joint)
    own = 1 / variance - precision
    return (mean / variance - pull) / own, 1 / own


def _tilted_moments(
    estimate: Float64[np.ndarray, " text"], variance: Float64[np.ndarray, " text"], groups: TwoGroups
) -> tuple[Float64[np.ndarray, " text"], Float64[np.ndarray, " text"]]:
    """Return mean and variance of each coefficient under its estimate and the two-group prior."""
    p = expit(_log_odds(groups.parameters, estimate / groups.scale, variance / groups.scale**2))
    means, spreads = [], []
    for centre, spread in ((0.0, groups.unused_spread), (groups.used_mean, groups.used_spread)):
        own = 1 / (1 / variance + 1 / spread**2)
        spreads.append(own)
        means.append(own * (estimate / variance + centre / spread**2))
    mean = (1 - p) * means[0] + p * means[1]
    square = (1 - p) * (spreads[0] + means[0] ** 2) + p * (spreads[1] + means[1] ** 2)
    return mean, np.maximum(square - mean**2, np.minimum(*spreads) * 1e-3)
