"""The kernel on CPU: one position pair's logits to the statistics, in few reads of each row.

A first read bounds the blocks of a row, which answer most questions of order, see `ltmia.kernels.ranking`. One further
read of both rows gives every sum over the vocabulary. Knows nothing of models, texts or torch.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from ltmia.kernels.compiled import compiled

# numba's cache of `fill_statistics` is of this file alone: touch it when that module changes.
from ltmia.kernels.ranking import BLOCK, MINUS_INFINITY_KEY, SCANNED_AT_ONCE, bound_blocks, extreme_ids, write_ranks

EXPONENT_FLOOR = np.float32(-87.0)
"""Lowest log-probability in sums, because exp of it is the smallest normal float32."""

# No `nnan` and `ninf`: rows may hold -inf. `reassoc` lets sums use vector registers.
_FAST = {"contract", "reassoc", "arcp"}


@intrinsic
def _float_of(_context: Any, _value: Any) -> Any:
    """Reinterpret an int32 as float32."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(inline="always")
def _exp(x: np.float32) -> np.float32:
    """Return exp(x) for EXPONENT_FLOOR <= x <= 0 to 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]."""
    n = np.int32(x * np.float32(1.4426950408889634) - np.float32(0.5))
    nf = np.float32(n)
    r = x - nf * np.float32(0.693359375) + nf * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of(np.int32((n + np.int32(127)) << np.int32(23)))


@njit(fastmath=_FAST)
def _vocabulary_sums(a: Any, b: Any, a_max: np.float32, b_max: np.float32, sums: Any) -> None:
    """Add up, over the vocabulary, the moments of log p and of the log-ratio under both distributions.

    With x and y the logits below their row's maximum and d = x - y: e^x, x e^x, x^2 e^x, the same
    of y, then d e^x, d^2 e^x, d e^y, d^2 e^y. Each block is summed in float32 and added in
    float64, so the error does not grow with the vocabulary.
    """
    vocab = a.shape[0]
    sums[:] = 0.0
    for start in range(0, vocab, 4 * BLOCK):
        a0 = a1 = a2 = b0 = b1 = b2 = d1 = d2 = g1 = g2 = np.float32(0)
        for v in range(start, min(start + 4 * BLOCK, vocab)):
            x = a[v] - a_max
            y = b[v] - b_max
            x = x if x > EXPONENT_FLOOR else EXPONENT_FLOOR
            y = y if y > EXPONENT_FLOOR else EXPONENT_FLOOR
            e = _exp(x)
            f = _exp(y)
            ex = e * x
            fy = f * y
            a0 += e
            a1 += ex
            a2 += ex * x
            b0 += f
            b1 += fy
            b2 += fy * y
            d = x - y
            ed = e * d
            fd = f * d
            d1 += ed
            d2 += ed * d
            g1 += fd
            g2 += fd * d
        block_sums = (a0, a1, a2, b0, b1, b2, d1, d2, g1, g2)
        for j in range(len(block_sums)):
            sums[j] += block_sums[j]


@njit
def _fill_scalars(i: int, a: Any, b: Any, truth: int, sums: Any, scalars: Any) -> None:
    """Write the scalars of a position; `sums` holds the vocabulary's, then both row maxima."""
    log_a, log_b, a_max, b_max = np.log(sums[0]), np.log(sums[3]), sums[10], sums[11]
    mean_a = sums[1] / sums[0]
    mean_b = sums[4] / sums[3]
    # The maximum goes first: beside logits of 1e30 the logarithm of the sum would be lost.
    scalars[i, 0] = (a[truth] - a_max) - log_a
    scalars[i, 1] = (b[truth] - b_max) - log_b
    scalars[i, 2] = log_a - mean_a
    scalars[i, 3] = log_b - mean_b
    scalars[i, 4] = np.sqrt(max(sums[2] / sums[0] - mean_a * mean_a, 0.0))
    scalars[i, 5] = np.sqrt(max(sums[5] / sums[3] - mean_b * mean_b, 0.0))
    ratio_a = sums[6] / sums[0]
    ratio_b = sums[8] / sums[3]
    scalars[i, 6] = max(ratio_a - (log_a - log_b), 0.0)
    scalars[i, 7] = max((log_a - log_b) - ratio_b, 0.0)
    scalars[i, 8] = np.sqrt(max(sums[7] / sums[0] - ratio_a * ratio_a, 0.0))
    scalars[i, 9] = np.sqrt(max(sums[9] / sums[3] - ratio_b * ratio_b, 0.0))
    scalars[i, 10] = (a_max - b_max) + (log_a - log_b)
    scalars[i, 11] = -log_b


@njit
def _fill_position(i: int, a: Any, b: Any, truth: int, scratch: Any, out: Any) -> None:
    """Write every statistic of one position pair; see `statistics` for rows with NaN or no finite maximum."""
    bounds_a, bounds_b, best_keys, asked_a, asked_b, found, waiting, sums = scratch
    scalars, top_logp, top_ratio, low_ratio, ranks, top_rank, reference_top_rank, low_rank = out
    k = top_rank.shape[1]
    # The true token and the other model's choices are ranked together.
    asked_a[0] = asked_b[0] = truth
    reference_top, top, low = asked_a[1:], asked_b[1 : k + 1], asked_b[k + 1 :]
    bound_blocks(a, bounds_a[0], bounds_a[1])
    bound_blocks(b, bounds_b[0], bounds_b[1])
    extreme_ids(a, bounds_a[0], np.int32(1), best_keys, top)
    extreme_ids(b, bounds_b[0], np.int32(1), best_keys, reference_top)
    extreme_ids(a, bounds_a[1], np.int32(-1), best_keys, low)
    a_max, b_max = a[top[0]], b[reference_top[0]]
    a_broken = bounds_a[1].min() < MINUS_INFINITY_KEY or not np.isfinite(a_max)
    b_broken = bounds_b[1].min() < MINUS_INFINITY_KEY or not np.isfinite(b_max)
    broken = a_broken or b_broken
    write_ranks(a, bounds_a, asked_a[:1] if broken else asked_a, found, waiting)
    ranks[i, 0] = 0 if a_broken else found[0]
    for j in range(k):
        reference_top_rank[i, j] = found[1 + j]
    write_ranks(b, bounds_b, asked_b[:1] if broken else asked_b, found, waiting)
    ranks[i, 1] = 0 if b_broken else found[0]
    for j in range(k):
        top_rank[i, j] = found[1 + j]
        low_rank[i, j] = found[1 + k + j]
    if broken:
        for block in (scalars, top_logp, top_ratio, low_ratio):
            block[i, :] = np.nan
        for block in (top_rank, reference_top_rank, low_rank):
            block[i, :] = 0
        return
    _vocabulary_sums(a, b, a_max, b_max, sums)
    sums[10], sums[11] = a_max, b_max
    _fill_scalars(i, a, b, truth, sums, scalars)
    log_a, log_b = np.log(sums[0]), np.log(sums[3])
    for j in range(k):
        top_logp[i, j] = (a[top[j]] - sums[10]) - log_a
        top_ratio[i, j] = ((a[top[j]] - sums[10]) - log_a) - ((b[top[j]] - sums[11]) - log_b)
        low_ratio[i, j] = ((a[low[j]] - sums[10]) - log_a) - ((b[low[j]] - sums[11]) - log_b)


# Threads call this at the same time, each for its own rows. numba's parallel loops take a third longer to compile.
@compiled
def fill_statistics(target: Any, reference: Any, truth: Any, out: Any, first: int, step: int) -> None:
    """Write the statistics of every `step`-th position pair, from the pair `first` on.

    Args:
        target: Float32 logits, (pred, vocab), C-contiguous rows.
        reference: Float32 logits of the same shape.
        truth: Int64 ids of the true tokens, (pred,), inside the vocabulary.
        out: The arrays that `statistics.empty_statistics` lays out.
        first: Row of the first pair.
        step: Rows from one pair to the next.
    """
    n, vocab = target.shape
    n_blocks, k = (vocab + BLOCK - 1) // BLOCK, out[1].shape[1]
    # One set of buffers for all rows: allocating per row would cost more in page faults than the row does.
    waiting = (
        np.full(SCANNED_AT_ONCE, np.inf, np.float32),
        np.empty(SCANNED_AT_ONCE, np.int32),
        np.empty(SCANNED_AT_ONCE, np.int64),
    )
    scratch = (
        np.empty((2, n_blocks), np.int32),
        np.empty((2, n_blocks), np.int32),
        np.empty(k, np.int32),
        np.empty(1 + k, np.int64),
        np.empty(1 + 2 * k, np.int64),
        np.empty(1 + 2 * k, np.int32),
        waiting,
        np.empty(12, np.float64),
    )
    for i in range(first, n, step):
        _fill_position(i, target[i], reference[i], truth[i], scratch, out)
