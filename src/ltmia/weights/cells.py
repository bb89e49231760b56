"""Finds how stored weights were rounded: the cell of all numbers that are rounded to each of them.

Quantised weights are often unpacked and stored in float32 or half precision again, so the dtype says little. The values
say more. Three kinds of formats are recognised, in any dtype:

- even levels: the weights of a block are whole multiples of a step, from zero or from an offset (int8, GPTQ, GGUF);
- few levels: a block holds few different numbers, unevenly spaced (NF4, float8 with a scale);
- few bits: all weights have a short mantissa (bfloat16, float16, float8 and MXFP4 without a scale).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from operator import itemgetter

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

BLOCKS = (256, 128, 64, 32, 16)
"""Weights of a row, or of a column, that may share a scale, if not all of them do."""
TILE = 128
"""Side of the square tiles that share a scale in some float8 checkpoints."""
MOST_LEVELS = 256
"""Most levels of a block."""
DIVISORS = range(1, 17)
"""Steps in the smallest weight or gap of a block: few of many levels may be taken."""
TOLERANCE = 0.02
"""Largest distance from a level, in steps, beyond the rounding of unpacked weights."""
LEAST_EVIDENCE = 8.0
"""A block counts if chance would put it on levels with a probability of at most exp of minus this."""
LEAST_FITTING, LEAST_COUNTED = 0.8, 0.1
"""Least share of the blocks that count which lie on levels, and of blocks of unequal weights which count."""
CHANCE_FITTING = 0.05
"""Largest difference of such shares that is put down to chance."""
PROBED, SAMPLED = 64, 2**15
"""Blocks and weights on which a format is tried before all are read: at most so many; but at least `LEAST_PROBED`
blocks."""
LEAST_PROBED = 8
CHUNK = 2**20
"""Weights that are read at a time."""
LEAST_NONZERO = 8
"""Least weights that are not zero of a block that counts, when it is asked whether they take few levels."""
SAME = 1e-5
"""Gap, as a share of a block's range, below which two weights are the same level."""
LEVEL_BITS = 16
"""Bits that writing down a level costs, in the choice of the block whose weights share levels."""
MANTISSA = 23
"""Bits of the mantissa of float32."""
MOST_BITS, FEW_BITS = 10, 3
"""Bits of the mantissa of float16, the most of a rounded format; and of float8."""

_Restore = Callable[[Float32[Tensor, "block weight"]], Float32[Tensor, "*shape"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The cell around each stored weight."""

    middle: Float32[Tensor, "*shape"]
    """Middle of the cell: the weight itself where levels are evenly spaced."""
    width: Float32[Tensor, "*shape"]
    """Distance of its edges."""


def find_cells(weight: Tensor) -> Cells | None:
    """Return the cells of a matrix; None if its weights look exact.

    Args:
        weight: Matrix as it is stored, or unpacked to floating point.
    """
    values = weight.detach().float().cpu()
    if not bool(values.any()):
        return None
    bits = _mantissa_bits(values)
    found = [_even_cells(values, bits), _float_cells(values, bits) if bits <= FEW_BITS else None]
    # Weights that lie on the levels of two formats are of the coarser one.
    best = max((cells for cells in found if cells is not None), key=_mean_width, default=None)
    best = best or _level_cells(values)
    return _float_cells(values, bits) if best is None and bits <= MOST_BITS else best


def _mean_width(cells: Cells) -> float:
    return float(cells.width.clamp(min=torch.finfo(torch.float32).tiny).log2().mean())


def _mantissa_bits(values: Float32[Tensor, "*shape"]) -> int:
    """Return how many bits of the mantissa the weights use; all of them if one is not a finite number."""
    flat, bits = values.reshape(-1), 0
    some = flat[:: max(len(flat) // SAMPLED, 1)]  # of exact weights, some use all bits
    for part in (some, *flat.split(CHUNK)):
        if bits == MANTISSA or not bool(part.isfinite().all()):
            return MANTISSA
        if bool(part.any()):
            bits = max(bits, int(_used_bits(part[part != 0]).max()))
    return bits


def _used_bits(values: Float32[Tensor, " weight"]) -> Tensor:
    mantissa = (torch.frexp(values).mantissa.abs() * 2.0 ** (MANTISSA + 1)).int()
    lowest = (mantissa & -mantissa).float()
    return MANTISSA + 1 - torch.frexp(lowest).exponent


def _float_cells(values: Float32[Tensor, "*shape"], bits: int) -> Cells:
    """Return the cells of a floating point format: twice as wide from each power of two on."""
    mantissa, exponent = torch.frexp(values)
    nonzero = values != 0
    # Below the normal range, all numbers are multiples of one smallest number.
    places = exponent[nonzero] - 1 - _used_bits(values[nonzero])
    smallest = float(torch.exp2(places.min().float())) if len(places) else 0.0
    width = torch.where(nonzero, torch.exp2((exponent - 1 - bits).float()).clamp(min=smallest), smallest)
    is_edge = (mantissa.abs() == 0.5) & (width > smallest)  # below a power of two, numbers are half as far apart
    middle = torch.where(is_edge, values + values.sign() * width / 8, values)
    return Cells(middle=middle, width=torch.where(is_edge, 0.75 * width, width))


def _layouts(values: Float32[Tensor, "*shape"]) -> Iterator[tuple[Float32[Tensor, "block weight"], _Restore]]:
    """Yield the weights by blocks of rows, then of columns, that may share a scale, each with its way back."""
    if values.ndim < 2:
        return
    rows = values.reshape(-1, values.shape[-1])
    for size in _sizes(rows):
        yield rows.reshape(-1, size), lambda found: found.reshape(values.shape)
    if values.ndim == 2:
        columns = values.T.contiguous()
        for size in _sizes(columns):
            yield columns.reshape(-1, size), lambda found: found.reshape(columns.shape).T


def _wide_layouts(values: Float32[Tensor, "*shape"]) -> Iterator[tuple[Float32[Tensor, "block weight"], _Restore]]:
    """Yield the weights as one block, then by tiles."""
    yield values.reshape(1, -1), lambda found: found.reshape(values.shape)
    if values.ndim == 2 and not any(side % TILE for side in values.shape):
        down, across = (side // TILE for side in values.shape)
        tiles = values.reshape(down, TILE, across, TILE).transpose(1, 2).reshape(-1, TILE * TILE)
        yield (
            tiles,
            lambda found: found.reshape(down, across, TILE, TILE).transpose(1, 2).reshape(values.shape),
        )


def _sizes(rows: Float32[Tensor, "row weight"]) -> list[int]:
    length = rows.shape[1]
    if length < 2:  # a single weight shows no levels
        return []
    return [length, *(size for size in BLOCKS if size < length and length % size == 0)]


def _probe(blocks: Float32[Tensor, "block weight"]) -> Float32[Tensor, "probed some"]:
    """Return some blocks whose weights are not all equal, and of long ones a part of their weights."""
    n_blocks = min(len(blocks), max(LEAST_PROBED, min(PROBED, SAMPLED // blocks.shape[1])))
    some = blocks[torch.linspace(0, len(blocks) - 1, n_blocks).long(), :: -(-blocks.shape[1] // SAMPLED)]
    return some[(some != some[:, :1]).any(dim=1)]


def _even_cells(values: Float32[Tensor, "*shape"], bits: int) -> Cells | None:
    """Return the cells if the weights of each block are whole steps, up to the rounding of unpacked weights."""
    errors = (0.0, 2.0 ** -(bits + 1)) if bits <= MOST_BITS else (0.0,)
    tried = [
        (_share(fit.fits, fit.counts), (layout, error, from_zero))
        for layout in _layouts(values)
        for error, from_zero in product(errors, (True, False))
        for fit in [_fit(_probe(layout[0]), error, from_zero=from_zero)]
    ]
    best = max((share for share, _ in tried), default=0.0)
    if best < LEAST_FITTING:
        return None
    # Blocks that are too large may fit a finer step by chance, but fewer of them do.
    (blocks, restore), error, from_zero = next(found for share, found in tried if share >= best - CHANCE_FITTING)
    chunks = blocks.split(max(CHUNK // blocks.shape[1], 1))
    steps = torch.cat([_fit(chunk, error, from_zero=from_zero).steps for chunk in chunks])
    # Of a block of equal weights, such as zeros, nothing is known.
    steps = steps.nan_to_num(nan=float(steps[steps.isfinite()].max())).float()
    return Cells(middle=values, width=restore(steps[:, None].expand_as(blocks)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    steps: Float64[Tensor, " block"]
    """Distance of neighbouring levels; at most the smallest gap where that is all that is known, NaN without a gap."""
    fits: Bool[Tensor, " block"]
    counts: Bool[Tensor, " block"]
    """Whether the block has enough weights to tell chance from levels."""


def _share(fits: Bool[Tensor, " block"], counts: Bool[Tensor, " block"]) -> float:
    """Return the share that fits of the blocks that count; 0 if too few count."""
    if not bool(counts.any()) or counts.double().mean() < LEAST_COUNTED:
        return 0.0
    return float(fits[counts].double().mean())


def _fit(blocks: Float32[Tensor, "block weight"], error: float, *, from_zero: bool) -> _Fit:
    """Find the step of each block.

    Args:
        blocks: Weights that share a scale.
        error: Largest error of a weight when it was unpacked, as a share of it.
        from_zero: Whether levels are multiples of the step; else they begin at the smallest weight.
    """
    ordered = blocks.double().sort(dim=1).values
    span = ordered[:, -1] - ordered[:, 0]
    gaps = ordered.diff(dim=1)
    gaps = torch.where(gaps > SAME * span[:, None], gaps, torch.inf)
    distinct = torch.cat([torch.ones_like(gaps[:, :1]), gaps.isfinite()], dim=1)
    places = ordered if from_zero else ordered - ordered[:, :1]
    slack = error * (ordered.abs() + (0 if from_zero else ordered[:, :1].abs()))
    smallest = gaps.amin(dim=1)
    nonzero = places.abs() > SAME * span[:, None]
    first = torch.where(nonzero, places.abs(), torch.inf).amin(dim=1) if from_zero else smallest
    steps = torch.where(smallest.isfinite(), smallest, torch.nan)
    fits, counts = (torch.zeros(len(blocks), dtype=torch.bool) for _ in range(2))
    open_rows = torch.arange(len(blocks))[first.isfinite() & smallest.isfinite()]
    counts[open_rows] = True
    for divisor in DIVISORS:
        if not len(open_rows):
            break
        step = first[open_rows] / divisor
        if error:
            step = _refined(places[open_rows], step)
        levels = places[open_rows] / step[:, None]
        allowed = TOLERANCE + slack[open_rows] / step[:, None]
        found = ((levels - levels.round()).abs() <= allowed).all(dim=1)
        found &= span[open_rows] / step < MOST_LEVELS - 0.5
        chance = (distinct[open_rows] * (2 * allowed).clamp(max=1).log()).sum(dim=1)
        # Step and origin are chosen so that two weights fit.
        surprise = -chance + 2 * math.log(2 * TOLERANCE) - math.log(len(DIVISORS))
        sure = surprise >= LEAST_EVIDENCE
        fits[open_rows[found]] = True
        counts[open_rows[found & ~sure]] = False
        steps[open_rows[found & sure]] = step[found & sure]
        open_rows = open_rows[~found & (span[open_rows] / step < MOST_LEVELS)]  # smaller steps take more levels
    return _Fit(steps=steps, fits=fits, counts=counts)


def _refined(places: Float64[Tensor, "block weight"], step: Float64[Tensor, " block"]) -> Float64[Tensor, " block"]:
    """Make steps more exact by least squares, on ever more levels from zero on, so that no level is miscounted."""
    for reach in range(2, MOST_LEVELS.bit_length()):
        near = places.abs() <= 2.0**reach * step[:, None]
        levels = (places / step[:, None]).round() * near
        square = levels.square().sum(dim=1)
        step = torch.where(square > 0, (levels * places).sum(dim=1) / square, step)
    return step


def _level_cells(values: Float32[Tensor, "*shape"]) -> Cells | None:
    """Return the cells if the weights of each block take few levels, wherever these lie."""
    layouts = ((_cost(blocks), blocks, restore) for blocks, restore in chain(_wide_layouts(values), _layouts(values)))
    cost, blocks, restore = min(layouts, key=itemgetter(0))
    if cost == math.inf:
        return None
    middle, width = _between_levels(blocks)
    return Cells(middle=restore(middle), width=restore(width))


def _cost(blocks: Float32[Tensor, "block weight"]) -> float:
    """Return the bits that writing down a weight takes, with the levels of its block; infinite if levels are many."""
    some = _probe(blocks)
    ordered = some.sort(dim=1).values
    is_new = (ordered.diff(dim=1, prepend=ordered[:, :1] - 1) > 0) & (ordered != 0)
    levels, weights = is_new.sum(dim=1), (ordered != 0).sum(dim=1)
    counts = weights >= LEAST_NONZERO
    few = (levels < MOST_LEVELS) & (2 * levels <= weights)
    if _share(few, counts) < LEAST_FITTING:
        return math.inf
    mean = float(levels[counts].double().mean())
    return math.log2(mean + 1) + LEVEL_BITS * mean / blocks.shape[1]


def _between_levels(
    blocks: Float32[Tensor, "block weight"],
) -> tuple[Float32[Tensor, "block weight"], Float32[Tensor, "block weight"]]:
    """Return middle and width of the cells whose edges are halfway between neighbouring weights of a block."""
    middle, width = torch.empty_like(blocks), torch.empty_like(blocks)
    step = max(CHUNK // blocks.shape[1], 1)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        ordered, order = blocks[part].sort(dim=1)
        below, above = _gaps_below(ordered), _gaps_below(-ordered.flip(1)).flip(1)
        # The outermost cells reach as far outwards as inwards.
        below, above = torch.where(below.isnan(), above, below), torch.where(above.isnan(), below, above)
        middle[part].scatter_(1, order, ordered + (above - below).nan_to_num() / 4)
        width[part].scatter_(1, order, (above + below) / 2)
    # Of a block of equal weights, such as zeros, nothing is known.
    return middle, width.nan_to_num(nan=float(width.nan_to_num().max()))


def _gaps_below(ordered: Float32[Tensor, "block weight"]) -> Float32[Tensor, "block weight"]:
    """Return how far the next smaller number of a block lies from each; NaN for the smallest."""
    gaps = ordered.diff(dim=1, prepend=torch.full_like(ordered[:, :1], torch.nan))
    begins = torch.arange(ordered.shape[1]) * (gaps != 0)  # where a number occurs first; a NaN counts
    return gaps.gather(1, begins.cummax(dim=1).values)
