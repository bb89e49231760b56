"""The product of bfloat16 matrices with float32 results, on CPUs that have AVX512-BF16.

torch has none: it rounds the results to bfloat16, or computes in float32 at half the speed. Here each instruction
multiplies 32 pairs of bfloat16 numbers, which is exact in float32, and adds them to 16 float32 sums.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from ltmia.kernels.compiled import compiled

ROWS = 6
"""Rows of a tile of the result. Its sums stay in registers: 6 x 4 of the 32 that hold 16 floats each."""
COLUMNS = 64
"""Columns of a tile."""
LANES = 16


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_FLOATS, _HALVES = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_BFloat(), 2 * LANES)
_INT64 = ir.IntType(64)


def has_bfloat16_product() -> bool:
    """Say whether this CPU has the instruction, and numba compiles for all that this CPU has."""
    named = (numba_config.CPU_NAME, numba_config.CPU_FEATURES) != (None, None)
    if named or numba_config.DISABLE_JIT or not numba_config.ENABLE_AVX:
        return False
    return bool(binding.get_host_cpu_features().get("avx512bf16", False))


def packed(weight: Tensor) -> Tensor:
    """Lay out a matrix for `multiply`: panels of `COLUMNS` rows, pair after pair.

    Args:
        weight: (m, k) bfloat16; k is even.

    Returns:
        (panels, k / 2, columns) int32, each two bfloat16 numbers; as large as `weight`.
    """
    pairs = _pairs(weight)
    panels = torch.empty(-(-len(pairs) // COLUMNS), pairs.shape[1], COLUMNS, dtype=torch.int32)
    _in_threads(_pack, pairs.numpy(), panels.numpy())
    return panels


def multiply(rows: Tensor, panels: Tensor, out: Tensor) -> None:
    """Write rows @ weight.T.

    Args:
        rows: (n, k) bfloat16.
        panels: `packed` weight.
        out: (n, m) float32; each row is contiguous.
    """
    _in_threads(_multiply, _pairs(rows).numpy(), panels.numpy(), out.numpy())


def _in_threads(kernel: Callable[..., None], *arrays: np.ndarray) -> None:
    """Run a kernel in as many threads as torch uses; each takes every so many panels."""
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(lambda first: kernel(*arrays, first, n_threads), range(n_threads)))


def _pairs(matrix: Tensor) -> Tensor:
    """Return a bfloat16 matrix as int32, two numbers in each; copied if torch cannot read it so."""
    whole = matrix.detach().contiguous().flatten()  # the one row of a matrix may have any stride
    pairs = (whole.clone() if whole.storage_offset() % 2 else whole).view(torch.int32)
    return pairs.view(len(matrix), matrix.shape[1] // 2)


def _place(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, _INT64(offset)), kind.as_pointer())


def _add_pair(builder: Any, sums: list[list[Any]], rows: tuple[Any, Any], panel: Any, k: Any) -> list[list[Any]]:
    """Return the sums of a tile with the products of pair `k` of each row and column added."""
    product = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOATS, [_FLOATS, _HALVES, _HALVES]), "llvm.x86.avx512bf16.dpbf16ps.512"
    )
    columns_at = builder.add(panel, builder.mul(k, _INT64(4 * COLUMNS)))
    places = [_place(builder, columns_at, 4 * LANES * j, _FLOATS) for j in range(COLUMNS // LANES)]
    columns = [builder.bitcast(builder.load(place, align=4), _HALVES) for place in places]
    pair_at = builder.add(rows[0], builder.mul(k, _INT64(4)))
    added = []
    for row in sums:
        pair = builder.load(_place(builder, pair_at, 0, ir.FloatType()), align=4)
        nothing = ir.Constant(_FLOATS, ir.Undefined)
        alone = builder.insert_element(nothing, pair, ir.IntType(32)(0))
        repeated = builder.shuffle_vector(alone, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))
        pairs = builder.bitcast(repeated, _HALVES)
        added.append([builder.call(product, [row[j], pairs, column]) for j, column in enumerate(columns)])
        pair_at = builder.add(pair_at, rows[1])
    return added


@intrinsic
def _tile(_context: Any, _rows: Any, _row_bytes: Any, _panel: Any, _n_pairs: Any, _out: Any, _out_bytes: Any) -> Any:
    """Multiply `ROWS` rows by a panel of `COLUMNS` columns.

    Args:
        _rows: Address of the first row's pairs of bfloat16 numbers.
        _row_bytes: Bytes from one row to the next.
        _panel: Address of the panel: for each pair of a row, the pairs of all columns.
        _n_pairs: Pairs of a row, at least 1.
        _out: Address of the first result.
        _out_bytes: Bytes from one row of results to the next.
    """

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, row_bytes, panel, n_pairs, out, out_bytes = arguments
        before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("pair", "store"))
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_INT64)
        sums = [[builder.phi(_FLOATS) for _ in range(COLUMNS // LANES)] for _ in range(ROWS)]
        added = _add_pair(builder, sums, (rows, row_bytes), panel, k)
        following = builder.add(k, _INT64(1))
        k.add_incoming(_INT64(0), before)
        k.add_incoming(following, loop)
        for i, j in np.ndindex(ROWS, COLUMNS // LANES):
            sums[i][j].add_incoming(ir.Constant(_FLOATS, None), before)
            sums[i][j].add_incoming(added[i][j], loop)
        builder.cbranch(builder.icmp_signed("<", following, n_pairs), loop, after)
        builder.position_at_end(after)
        for i, row in enumerate(added):
            row_at = builder.add(out, builder.mul(out_bytes, _INT64(i)))
            for j, total in enumerate(row):
                builder.store(total, _place(builder, row_at, 4 * LANES * j, _FLOATS), align=4)
        return target.get_dummy_value()

    return types.void(*(types.int64,) * 6), generate


@compiled
def _pack(pairs: Any, panels: Any, first: int, step: int) -> None:
    """Write every `step`-th panel, from the panel `first` on."""
    n_pairs = pairs.shape[1]
    whole = n_pairs - n_pairs % LANES
    for p in range(first, len(panels), step):
        panel, some = panels[p], pairs[p * COLUMNS : (p + 1) * COLUMNS]
        panel[:, len(some) :] = 0
        # Short runs, so that all they write stays in the nearest cache.
        for k0 in range(0, whole, LANES):
            for c in range(len(some)):
                for k in range(LANES):
                    panel[k0 + k, c] = some[c, k0 + k]
        panel[whole:, : len(some)] = some[:, whole:].T


@compiled
def _multiply(rows: Any, panels: Any, out: Any, first: int, step: int) -> None:
    """Write the columns of every `step`-th panel, from the panel `first` on."""
    (n, n_pairs), whole = rows.shape, len(rows) - len(rows) % ROWS
    last, tile = np.zeros((ROWS, n_pairs), np.int32), np.empty((ROWS, COLUMNS), np.float32)
    last[: n - whole] = rows[whole:]
    for p in range(first, len(panels), step):
        panel, start = panels[p].ctypes.data, p * COLUMNS
        width = min(COLUMNS, out.shape[1] - start)
        for i in range(0, n, ROWS):
            some = rows[i:] if i < whole else last
            if i < whole and width == COLUMNS:
                _tile(some.ctypes.data, 4 * n_pairs, panel, n_pairs, out[i:, start:].ctypes.data, out.strides[0])
            else:
                _tile(some.ctypes.data, 4 * n_pairs, panel, n_pairs, tile.ctypes.data, 4 * COLUMNS)
                out[i : i + ROWS, start : start + width] = tile[: min(ROWS, n - i), :width]
