"""One read of both models' rows of logits on an accelerator, by Triton: sums over the vocabulary, and ranks.

The same as `torch_statistics.reduce_by_torch`, which reads the rows some thirty times.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltmia.kernels.torch_statistics import LOGP_FLOOR, N_SUMS, Reduced

BLOCK = 256
"""Entries of a row at a time."""
N_WARPS = 8
FLOOR = tl.constexpr(LOGP_FLOOR)


def reduce_by_triton(target: Tensor, reference: Tensor, asked_target: Tensor, asked_reference: Tensor) -> Reduced:
    """Reduce both rows; see `torch_statistics.Reduce`. Sums are float32 in each lane, then float64."""
    rows = [logits if logits.stride(1) == 1 else logits.contiguous() for logits in (target, reference)]
    values = [asked.contiguous() for asked in (asked_target, asked_reference)]
    n, vocab = target.shape
    sums = torch.empty(n, N_SUMS, dtype=torch.float64, device=target.device)
    above = [torch.empty(asked.shape, dtype=torch.int32, device=target.device) for asked in values]
    widths = [asked.shape[1] for asked in values]
    if n:
        # Triton launches on the current device, which need not be that of the logits: `--device cuda:1`.
        with torch.accelerator.device_index(target.device.index):
            _reduce[(n,)](
                *rows, *(row.stride(0) for row in rows), vocab, *values, *widths, sums, *above,
                A_ASKED=triton.next_power_of_2(widths[0]), B_ASKED=triton.next_power_of_2(widths[1]), BLOCK=BLOCK,
                num_warps=N_WARPS,
            )  # fmt: skip
    return Reduced(sums=sums, above_target=above[0], above_reference=above[1])


@triton.jit
def _reduce(  # noqa: PLR0913, PLR0915  Triton has no tuples of tensors
    a: Any, b: Any, a_stride: Any, b_stride: Any, vocab: Any, a_asked: Any, b_asked: Any, n_a: Any, n_b: Any,
    sums: Any, a_above: Any, b_above: Any, A_ASKED: tl.constexpr, B_ASKED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Reduce the rows of one position."""
    row = tl.program_id(0).to(tl.int64)
    in_a, in_b, lane = tl.arange(0, A_ASKED), tl.arange(0, B_ASKED), tl.arange(0, BLOCK)
    a_values = tl.load(a_asked + row * n_a + in_a, mask=in_a < n_a, other=float("inf"))
    b_values = tl.load(b_asked + row * n_b + in_b, mask=in_b < n_b, other=float("inf"))
    a_max, b_max = tl.load(a_asked + row * n_a + n_a - 1), tl.load(b_asked + row * n_b + n_b - 1)
    a_counts, b_counts = tl.zeros([A_ASKED, BLOCK], tl.int32), tl.zeros([B_ASKED, BLOCK], tl.int32)
    p0 = tl.zeros([BLOCK], tl.float32)
    p1, p2, q0, q1, q2, dp1, dp2, dq1, dq2 = p0, p0, p0, p0, p0, p0, p0, p0, p0
    for start in range(0, vocab, BLOCK):
        inside = start + lane < vocab
        u = tl.load(a + row * a_stride + start + lane, mask=inside, other=float("-inf"))
        v = tl.load(b + row * b_stride + start + lane, mask=inside, other=float("-inf"))
        a_counts += (u[None, :] > a_values[:, None]).to(tl.int32)
        b_counts += (v[None, :] > b_values[:, None]).to(tl.int32)
        x, y = u - a_max, v - b_max
        x, y = tl.where(x < FLOOR, FLOOR, x), tl.where(y < FLOOR, FLOOR, y)  # keeps NaN
        p, q = tl.where(inside, tl.exp(x), 0.0), tl.where(inside, tl.exp(y), 0.0)
        d = x - y
        p0 += p
        p1 += x * p
        p2 += x * x * p
        q0 += q
        q1 += y * q
        q2 += y * y * q
        dp1 += d * p
        dp2 += d * d * p
        dq1 += d * q
        dq2 += d * d * q
    tl.store(a_above + row * n_a + in_a, tl.sum(a_counts, 1), mask=in_a < n_a)
    tl.store(b_above + row * n_b + in_b, tl.sum(b_counts, 1), mask=in_b < n_b)
    to = sums + row * 10
    tl.store(to, tl.sum(p0.to(tl.float64), 0))
    tl.store(to + 1, tl.sum(p1.to(tl.float64), 0))
    tl.store(to + 2, tl.sum(p2.to(tl.float64), 0))
    tl.store(to + 3, tl.sum(q0.to(tl.float64), 0))
    tl.store(to + 4, tl.sum(q1.to(tl.float64), 0))
    tl.store(to + 5, tl.sum(q2.to(tl.float64), 0))
    tl.store(to + 6, tl.sum(dp1.to(tl.float64), 0))
    tl.store(to + 7, tl.sum(dp2.to(tl.float64), 0))
    tl.store(to + 8, tl.sum(dq1.to(tl.float64), 0))
    tl.store(to + 9, tl.sum(dq2.to(tl.float64), 0))
