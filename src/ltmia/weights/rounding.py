"""Says what a rounded weight tells about the update: in which cell its exact value lay, seen from the base.

A released target is often stored in bfloat16 or in a few bits. Its exact weight lay in the cell of numbers that are
rounded to the stored one. The base's weight is known, so the update lies in a known interval. Where the base lies in
the middle of a wide cell, this says next to nothing; where it lies near an edge, it says on which side the target is.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr
from torch import Tensor

MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10}
"""Bits of the mantissa of formats whose rounding is visible in an update."""
BLOCKS = (0, 256, 128, 64, 32)
"""Weights of a row that share a scale in formats of few bits; 0: all of the row."""
MOST_LEVELS = 255
"""Most steps of a scale of few bits."""
GRID_TOLERANCE = 0.02
"""Largest distance from a level, in steps."""
SAME = 1e-5
"""Gap, as a share of a block's range, below which two weights are the same level."""
MOST_WITHOUT_REPEATS = 0.5
"""Largest share of blocks in which no level occurs twice."""
DIVISORS = (1, 2, 3, 4)
"""Steps in the smallest gap between two weights of a block: few of many levels may be taken."""
NARROW = 1e-2
"""Width of an interval, in standard deviations of the update, below which the update is even within it."""
LEAST_TOLD = 1e-6
"""Share of the update's variance below which an interval tells nothing."""


def cell_widths(weight: Tensor) -> Float32[Tensor, "*shape"] | None:
    """Return the width of the cell that is rounded to each stored weight; None if they look exact.

    Half precision is recognised by values that fit into it, in whichever dtype they are loaded. Other formats are
    recognised if all weights of each block lie on at most `MOST_LEVELS` + 1 evenly spaced levels.

    Args:
        weight: Matrix as it is stored, or unpacked to floating point.
    """
    values = weight.detach().float().cpu()
    for dtype, bits in MANTISSA_BITS.items():
        if weight.dtype == dtype or torch.equal(values.to(dtype).float(), values):
            _, exponent = torch.frexp(values.abs().clamp(min=torch.finfo(dtype).smallest_normal))
            return torch.exp2((exponent - 1 - bits).float())
    if values.ndim != 2:
        return None
    across = (found.T for found in _grids(values.T.contiguous()))
    return next(itertools.chain(_grids(values), across), None)


def _grids(values: Float32[Tensor, "out in"]) -> Iterator[Float32[Tensor, "out in"]]:
    for size in BLOCKS:
        if size and values.shape[1] % size:
            continue
        blocks = values.reshape(-1, size or values.shape[1])
        steps = _steps(blocks[:1])
        if steps is not None and (steps := _steps(blocks)) is not None:
            yield steps[:, None].expand_as(blocks).reshape(values.shape)


def _steps(blocks: Float32[Tensor, "block weight"]) -> Float32[Tensor, " block"] | None:
    """Return the distance of neighbouring levels in each block; None if a block does not lie on levels."""
    ordered = blocks.double().sort(dim=1).values
    ordered -= ordered[:, :1].clone()
    gaps = ordered.diff(dim=1)
    apart = gaps > SAME * ordered[:, -1:]
    if apart.all(dim=1).double().mean() > MOST_WITHOUT_REPEATS:
        return None
    smallest = torch.where(apart, gaps, torch.inf).amin(dim=1)
    steps = torch.full_like(smallest, torch.nan)
    for divisor in DIVISORS:
        levels = ordered / (smallest / divisor)[:, None]
        near = (levels - levels.round()).abs() <= GRID_TOLERANCE * divisor
        fits = near.all(dim=1) & (levels[:, -1] <= MOST_LEVELS + 0.5)
        steps = torch.where(steps.isnan() & fits, smallest / divisor, steps)
    steps[smallest.isinf()] = 0.0  # a block of one number, such as zeros
    return None if bool(steps.isnan().any()) else steps.float()


def observe_update(
    change: Float64[np.ndarray, " coordinate"], width: Float64[np.ndarray, " coordinate"]
) -> tuple[Float64[np.ndarray, " coordinate"], Float64[np.ndarray, " coordinate"]]:
    """Return a normal observation of each coordinate's exact update, and its variance.

    The update is taken as normal around 0, with the variance that makes the intervals most likely. The observation is
    the one that would give the same mean and variance as the interval does, given that (a truncated normal); its
    variance is infinite where the interval tells nothing. Where cells are narrow, it is the change itself, with an
    even error, width^2 / 12.

    Args:
        change: Stored target minus base.
        width: Width of the cell around the stored target; 0 where it is exact.
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
