"""Says what a rounded weight tells about the update: in which cell its exact value lay, seen from the base.

A released target is often stored in bfloat16 or in a few bits. Its exact weight lay in the cell of numbers that are
rounded to the stored one (`find_cells`). The base's weight is known, so the update lies in a known interval. Where the
base lies in the middle of a wide cell, this says next to nothing; where it lies near an edge, it says on which side the
target is.
"""

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr

NARROW = 1e-2
"""Width of an interval, in standard deviations of the update, below which the update is even within it."""
LEAST_TOLD = 1e-6
"""Share of the update's variance below which an interval tells nothing."""


def observe_update(
    change: Float64[np.ndarray, " coordinate"], width: Float64[np.ndarray, " coordinate"]
) -> tuple[Float64[np.ndarray, " coordinate"], Float64[np.ndarray, " coordinate"]]:
    """Return a normal observation of each coordinate's exact update, and its variance.

    The update is taken as normal around 0, with the variance that makes the intervals most likely. The observation is
    the one that would give the same mean and variance as the interval does, given that (a truncated normal); its
    variance is infinite where the interval tells nothing. Where cells are narrow, it is the change itself, with an
    even error, width^2 / 12.

    Args:
        change: Middle of the target's cell minus base.
        width: Width of the cell; 0 where the target is exact.
    """
    spread = _spread(change, width)
    if spread == 0:
        return change, width**2 / 12
    low, high = (change - width / 2) / spread, (change + width / 2) / spread
    mean, variance = _truncated_normal(low, high)
    told = 1 - variance
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.where(told > LEAST_TOLD, mean / told, 0.0)
        noise = np.where(told > LEAST_TOLD, variance / told, np.inf)
    return observed * spread, noise * spread**2


def _spread(change: Float64[np.ndarray, " coordinate"], width: Float64[np.ndarray, " coordinate"]) -> float:
    """Return the standard deviation of the update that makes the intervals most likely."""
    if not width.any():
        return float(np.sqrt(np.mean(change**2)))
    rough = float(np.log(np.sqrt(np.mean(change**2)) + np.finfo(float).tiny))

    def badness(log_spread: float) -> float:
        scale = np.exp(log_spread)
        exact = width < NARROW * scale
        z = change[exact] / scale
        density = (-0.5 * z**2 - log_spread).sum()
        low, high = ((change[~exact] + side * width[~exact] / 2) / scale for side in (-1, 1))
        return -float(density + (_log_mass(low, high) - np.log(width[~exact])).sum())

    found = minimize_scalar(badness, bounds=(rough - 12, rough + 2), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def _log_mass(low: Float64[np.ndarray, " _"], high: Float64[np.ndarray, " _"]) -> Float64[np.ndarray, " _"]:
    """Return the logarithm of a standard normal's mass between two numbers."""
    flip = low > 0
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    upper = log_ndtr(b)
    with np.errstate(divide="ignore"):  # nothing lies between two equal numbers
        return upper + np.log1p(-np.exp(log_ndtr(a) - upper))


def _truncated_normal(
    low: Float64[np.ndarray, " _"], high: Float64[np.ndarray, " _"]
) -> tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]]:
    """Return mean and variance of a standard normal between two numbers."""
    mass = _log_mass(low, high)
    with np.errstate(invalid="ignore", over="ignore"):
        at_low, at_high = (np.exp(-0.5 * x**2 - 0.5 * np.log(2 * np.pi) - mass) for x in (low, high))
        mean = at_low - at_high
        variance = 1 + low * at_low - high * at_high - mean**2
    even = high - low < NARROW
    mean = np.where(even, (low + high) / 2, np.clip(mean, low, high))
    variance = np.where(even, (high - low) ** 2 / 12, np.clip(variance, 0, 1))
    return mean, variance
