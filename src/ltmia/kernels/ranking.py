"""The top and bottom tokens of a row of logits, and ranks in it, from the bounds of its blocks.

One read gives the largest and the smallest logit of every block of 64, as integer keys that sort as the floats do. The
top and bottom k lie in the k best blocks, and a rank is a count in which whole blocks fall on one side of the
threshold. If most blocks are undecided, eight ranks are counted in one read.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 64
"""Ids per block: four or eight vector registers, and few enough to scan for candidates."""
MINUS_INFINITY_KEY = np.int32(-2139095040)
"""Key of -inf; only a NaN lies below."""
SCAN_SHARE = 0.1
"""Above this share of undecided blocks, counting the whole row is cheaper than block by block."""
SCANNED_AT_ONCE = 8
"""Thresholds counted in one read of a row: as many as the registers of the smallest processors hold."""


@intrinsic
def _bits_of(_context: Any, _value: Any) -> Any:
    """Reinterpret a float32 as int32 (a plain bitcast, so that loops stay vectorised)."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@njit(inline="always")
def _key(value: np.float32) -> np.int32:
    """Map a float32 to an int32 of the same order; -0.0 and 0.0 get the same key."""
    bits = _bits_of(value)
    key = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return np.int32(key + (bits < 0))


@njit
def bound_blocks(row: Any, block_max: Any, block_min: Any) -> None:
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
def extreme_ids(row: Any, bounds: Any, sign: np.int32, best_keys: Any, best_ids: Any) -> None:
    """Find the k highest (sign = 1) or lowest (sign = -1) keys, best first, ties by id.

    The k-th best bound of a block is never better than the k-th best key, so only blocks that reach it are scanned.
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
    """Count the logits above a threshold; -1 if too many blocks are undecided."""
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
def write_ranks(row: Any, bounds: Any, ids: Any, ranks: Any, waiting: Any) -> None:
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
