"""The rank kernel on CPU: one position pair's logits to the statistics, in few reads of each row.

A first read gives the largest and the smallest logit of every block of 64, as integer keys that sort
as the floats do. These block bounds answer most questions without touching the row again: the top and
bottom k lie in the k best blocks, and a rank is a count in which whole blocks fall on one side of the
threshold. Ranks that most blocks leave open are counted eight to a read. One further read of both rows
gives every sum over the vocabulary. Knows nothing of models, texts or torch.
"""

from typing import Any

import numpy as np
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic

# OpenMP's workers spin for work that comes once a batch, and starve the models of their cores.
config.THREADING_LAYER = "workqueue"

BLOCK = 64
"""Ids per block: four or eight vector registers, and few enough to scan for candidates."""
EXPONENT_FLOOR = np.float32(-87.0)
"""exp of this is the smallest normal float32; lower log-probabilities are taken as this in sums."""
MINUS_INFINITY_KEY = np.int32(-2139095040)
"""Key of -inf; only a NaN lies below."""
SCAN_SHARE = 0.1
"""Above this share of undecided blocks, counting the whole row is cheaper than block by block."""
SCANNED_AT_ONCE = 8
"""Thresholds counted in one read of a row: as many as the registers of the smallest processors hold."""

# No `nnan` and `ninf`: rows may hold -inf. `reassoc` lets sums use vector registers.
_FAST = {"contract", "reassoc", "arcp"}


@intrinsic
def _bits_of(_context: Any, _value: Any) -> Any:
    """Reinterpret a float32 as int32 (a plain bitcast, so that loops stay vectorised)."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _float_of(_context: Any, _value: Any) -> Any:
    """Reinterpret an int32 as float32."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(inline="always")
def _key(value: np.float32) -> np.int32:
    """Map a float32 to an int32 of the same order; -0.0 and 0.0 get the same key."""
    bits = _bits_of(value)
    key = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return np.int32(key + (bits < 0))


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


@njit
def _bound_blocks(row: Any, block_max: Any, block_min: Any) -> None:
    """Write the extreme keys of each block of a row."""
    vocab = row.shape[0]
    for block in range(vocab // BLOCK):
        # A trip count known to the compiler: the whole block becomes a few vector instructions.
        start = block * BLOCK
        highest = lowest = _key(row[start])
        for j in range(BLOCK):
            key = _key(row[start + j])
            highest = max(highest, key)
            lowest = min(lowest, key)
        block_max[block] = highest
        block_min[block] = lowest
    if vocab % BLOCK:
        highest = lowest = _key(row[vocab - 1])
        for v in range(vocab - vocab % BLOCK, vocab):
            highest = max(highest, _key(row[v]))
            lowest = min(lowest, _key(row[v]))
        block_max[-1] = highest
        block_min[-1] = lowest


@njit
def _insert(best_keys: Any, best_ids: Any, key: np.int32, v: int) -> None:
    """Insert into a falling list, behind equal keys: among ties the lowest id comes first."""
    i = best_keys.shape[0] - 1
    while i > 0 and best_keys[i - 1] < key:
        best_keys[i] = best_keys[i - 1]
        best_ids[i] = best_ids[i - 1]
        i -= 1
    best_keys[i] = key
    best_ids[i] = v


@njit
def _extreme_ids(row: Any, bounds: Any, sign: np.int32, best_keys: Any, best_ids: Any) -> None:
    """Find the k highest (sign = 1) or lowest (sign = -1) keys, best first, ties by id.

    The k-th best block bound is a floor under the k-th best key, so only blocks that reach it are scanned.
    """
    k = best_keys.shape[0]
    n_blocks = bounds.shape[0]
    # ~key mirrors the order without the overflow that -key has at the smallest integer.
    best_keys[:] = np.int32(-2147483648)
    best_ids[:] = -1
    if n_blocks > k:
        for block in range(n_blocks):
            bound = bounds[block] if sign > 0 else ~bounds[block]
            if bound > best_keys[k - 1]:
                _insert(best_keys, best_ids, bound, block)
    floor = best_keys[k - 1] if n_blocks > k else np.int32(-2147483648)
    best_keys[:] = np.int32(-2147483648)
    best_ids[:] = -1
    for block in range(n_blocks):
        bound = bounds[block] if sign > 0 else ~bounds[block]
        if bound < floor:
            continue
        for v in range(block * BLOCK, min((block + 1) * BLOCK, row.shape[0])):
            key = _key(row[v]) if sign > 0 else ~_key(row[v])
            if key > best_keys[k - 1] or best_ids[k - 1] < 0:
                _insert(best_keys, best_ids, key, v)


@njit
def _count_above(row: Any, threshold: np.float32, start: int, stop: int) -> np.int32:
    count = np.int32(0)
    for v in range(start, stop):
        # Narrowed at each step: numba adds two int32 to an int64, which halves the lanes and widens every mask.
        count = np.int32(count + np.int32(row[v] > threshold))
    return count


@njit
def _count_above_each(row: Any, thresholds: Any, counts: Any) -> None:
    """Count the logits above each of `SCANNED_AT_ONCE` thresholds in one read of the row."""
    t0, t1, t2, t3 = thresholds[0], thresholds[1], thresholds[2], thresholds[3]
    t4, t5, t6, t7 = thresholds[4], thresholds[5], thresholds[6], thresholds[7]
    n0 = n1 = n2 = n3 = n4 = n5 = n6 = n7 = np.int32(0)
    for v in range(row.shape[0]):
        x = row[v]
        n0 = np.int32(n0 + np.int32(x > t0))
        n1 = np.int32(n1 + np.int32(x > t1))
        n2 = np.int32(n2 + np.int32(x > t2))
        n3 = np.int32(n3 + np.int32(x > t3))
        n4 = np.int32(n4 + np.int32(x > t4))
        n5 = np.int32(n5 + np.int32(x > t5))
        n6 = np.int32(n6 + np.int32(x > t6))
        n7 = np.int32(n7 + np.int32(x > t7))
    each = (n0, n1, n2, n3, n4, n5, n6, n7)
    for j in range(len(each)):
        counts[j] = each[j]


@njit
def _count_by_blocks(row: Any, block_max: Any, block_min: Any, threshold: np.float32) -> np.int32:
    """Count the logits above a threshold; -1 where too many blocks leave it open."""
    vocab, n_blocks, key = row.shape[0], block_max.shape[0], _key(threshold)
    undecided = np.int32(0)
    for block in range(n_blocks):
        undecided = np.int32(undecided + np.int32((block_max[block] > key) & (block_min[block] <= key)))
    if undecided > SCAN_SHARE * n_blocks:
        return np.int32(-1)
    above = np.int32(0)
    for block in range(n_blocks):
        if block_max[block] > key:
            start = block * BLOCK
            stop = min(start + BLOCK, vocab)
            if block_min[block] > key:
                above += np.int32(stop - start)
            else:
                above += _count_above(row, threshold, start, stop)
    return above


@njit
def _write_ranks(row: Any, bounds: Any, ids: Any, ranks: Any, waiting: Any) -> None:
    """Write 1 + the number of logits above that of each id; `waiting` holds thresholds, counts and places."""
    thresholds, counts, places = waiting
    n_waiting = 0
    for j in range(ids.shape[0]):
        threshold = row[ids[j]]
        above = _count_by_blocks(row, bounds[0], bounds[1], threshold)
        ranks[j] = np.int32(1) + above
        if above < 0:
            thresholds[n_waiting], places[n_waiting] = threshold, j
            n_waiting += 1
        if n_waiting == SCANNED_AT_ONCE or (n_waiting and j == ids.shape[0] - 1):
            _count_above_each(row, thresholds, counts)
            for i in range(n_waiting):
                ranks[places[i]] = np.int32(1) + counts[i]
            n_waiting = 0


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
    log_a = np.log(sums[0])
    log_b = np.log(sums[3])
    mean_a = sums[1] / sums[0]
    mean_b = sums[4] / sums[3]
    lse_a = sums[10] + log_a
    lse_b = sums[11] + log_b
    scalars[i, 0] = a[truth] - lse_a
    scalars[i, 1] = b[truth] - lse_b
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
    scalars[i, 10] = lse_a - lse_b
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
    _bound_blocks(a, bounds_a[0], bounds_a[1])
    _bound_blocks(b, bounds_b[0], bounds_b[1])
    _extreme_ids(a, bounds_a[0], np.int32(1), best_keys, top)
    _extreme_ids(b, bounds_b[0], np.int32(1), best_keys, reference_top)
    _extreme_ids(a, bounds_a[1], np.int32(-1), best_keys, low)
    a_max, b_max = a[top[0]], b[reference_top[0]]
    a_broken = bounds_a[1].min() < MINUS_INFINITY_KEY or not np.isfinite(a_max)
    b_broken = bounds_b[1].min() < MINUS_INFINITY_KEY or not np.isfinite(b_max)
    broken = a_broken or b_broken
    _write_ranks(a, bounds_a, asked_a[:1] if broken else asked_a, found, waiting)
    ranks[i, 0] = 0 if a_broken else found[0]
    reference_top_rank[i, :] = found[1 : k + 1]
    _write_ranks(b, bounds_b, asked_b[:1] if broken else asked_b, found, waiting)
    ranks[i, 1] = 0 if b_broken else found[0]
    top_rank[i, :] = found[1 : k + 1]
    low_rank[i, :] = found[k + 1 :]
    if broken:
        for block in (scalars, top_logp, top_ratio, low_ratio):
            block[i, :] = np.nan
        for block in (top_rank, reference_top_rank, low_rank):
            block[i, :] = 0
        return
    _vocabulary_sums(a, b, a_max, b_max, sums)
    sums[10], sums[11] = a_max, b_max
    _fill_scalars(i, a, b, truth, sums, scalars)
    lse_a, lse_b = a_max + np.log(sums[0]), b_max + np.log(sums[3])
    for j in range(k):
        top_logp[i, j] = a[top[j]] - lse_a
        top_ratio[i, j] = (a[top[j]] - lse_a) - (b[top[j]] - lse_b)
        low_ratio[i, j] = (a[low[j]] - lse_a) - (b[low[j]] - lse_b)


@njit(parallel=True, cache=True)
def fill_statistics(target: Any, reference: Any, truth: Any, out: Any, n_workers: int) -> None:
    """Write the statistics of every position pair; rows are shared out to `n_workers` threads.

    Args:
        target: Float32 logits, (pred, vocab), C-contiguous rows.
        reference: Float32 logits of the same shape.
        truth: Int64 ids of the true tokens, (pred,), inside the vocabulary.
        out: The arrays that `statistics.empty_statistics` lays out.
        n_workers: Threads to share the rows among.
    """
    n, vocab = target.shape
    n_blocks, k = (vocab + BLOCK - 1) // BLOCK, out[1].shape[1]
    for worker in prange(n_workers):
        # One set of buffers per worker: allocating per row would cost more in page faults than the row does.
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
        for i in range(worker, n, n_workers):
            _fill_position(i, target[i], reference[i], truth[i], scratch, out)


def use_threads(n: int) -> int:
    """Let the kernel use as many threads as the models do, if it has them; return how many."""
    allowed = min(n, config.NUMBA_NUM_THREADS)
    set_num_threads(allowed)
    return allowed
