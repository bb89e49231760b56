"""The statistics of logits on devices other than the CPU: the numbers of `cpu_statistics`.

Top and bottom ids come from `torch.topk`. Everything else, sums over the vocabulary and ranks, comes from one further
read of both rows: by `triton_statistics` where Triton compiles for the device, else by plain tensor operations here.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOGP_FLOOR = -87.0
"""Log-probabilities below this are taken as this in sums over the vocabulary, as in `cpu_statistics`."""
N_SUMS = 10
COMPILES_TRITON = ("cuda", "xpu")
"""Devices for which Triton compiles."""


class Reduced(NamedTuple):
    """What one read of the rows of both models gives, per position."""

    sums: Tensor
    """(pred, 10) float64. With x and y the logits below their row's maximum and d = x - y, over the vocabulary: e^x,
    x e^x, x^2 e^x, the same of y, then d e^x, d^2 e^x, d e^y, d^2 e^y. NaN if the row of a model holds NaN or no finite
    maximum."""
    above_target: Tensor
    """(pred, asked) int32: entries of the target's row that are strictly above each value asked for."""
    above_reference: Tensor
    """The same for the reference."""


Reduce = Callable[[Tensor, Tensor, Tensor, Tensor], Reduced]
"""Given the logits of both models, (pred, vocab), and for each model the values asked for, (pred, asked), of which the
last is the row's maximum."""


def fill_statistics_torch(
    target: Tensor, reference: Tensor, truth: Tensor, k: int, reduce: Reduce | None = None
) -> tuple[Tensor, ...]:
    """Return the arrays of `statistics.empty_statistics`, filled.

    Args:
        target: Raw float32 logits, (pred, vocab).
        reference: Raw float32 logits of the same shape.
        truth: Int64 ids of the true tokens, (pred,).
        k: Top and bottom tokens to keep.
        reduce: Reads the rows; the default suits their device.
    """
    y, top, reference_top, low = truth[:, None], _first(target, k), _first(reference, k), _first(-target, k)
    asked = [
        target.gather(1, torch.cat([y, reference_top, top[:, :1]], 1)),
        reference.gather(1, torch.cat([y, top, low, reference_top[:, :1]], 1)),
    ]
    sums, above_target, above_reference = (reduce or _reduce_for(target.device))(target, reference, *asked)
    max_a, max_b = (values[:, -1:].double() for values in asked)
    log_a, log_b = sums[:, :1].log(), sums[:, 3:4].log()

    # The maximum goes first: beside logits of 1e30 the logarithm of the sum would be lost.
    def target_logp(ids: Tensor) -> Tensor:
        return (target.gather(1, ids) - max_a) - log_a

    def reference_logp(ids: Tensor) -> Tensor:
        return (reference.gather(1, ids) - max_b) - log_b

    normalizer_gap = (max_a - max_b) + (log_a - log_b)
    scalars = [target_logp(y), reference_logp(y), _moments(sums), normalizer_gap, -log_b]
    ratios = [target_logp(ids) - reference_logp(ids) for ids in (top, low)]
    floats = [torch.cat(scalars, 1), target_logp(top), *ratios]
    ranks = [1 + above_target, 1 + above_reference]
    own = ~torch.isfinite(torch.cat([max_a + log_a, max_b + log_b], 1))
    broken = own.any(1, keepdim=True)
    return (
        *(block.float().masked_fill(broken, torch.nan) for block in floats),
        torch.cat([rank[:, :1] for rank in ranks], 1).int().masked_fill(own, 0),
        *(
            block.int().masked_fill(broken, 0)
            for block in (ranks[1][:, 1 : k + 1], ranks[0][:, 1 : k + 1], ranks[1][:, k + 1 : 2 * k + 1])
        ),
    )


def _first(logits: Tensor, k: int) -> Tensor:
    """Return the ids of the k highest logits; of equal ones, the lower id comes first."""
    # The bits of a float, those of negative ones turned round, are in the order of the floats. + 0.0 makes -0.0 0.0.
    bits = (logits + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    vocab = logits.shape[1]
    places = torch.arange(vocab - 1, -1, -1, device=logits.device)
    return vocab - 1 - (torch.topk((ordered << 32) | places, k, dim=1).values & 0xFFFFFFFF)


def _reduce_for(device: torch.device) -> Reduce:
    if device.type in COMPILES_TRITON:
        try:
            from ltmia.kernels.triton_statistics import reduce_by_triton
        except ImportError:  # torch brings Triton for Linux only
            return reduce_by_torch
        return reduce_by_triton
    return reduce_by_torch


def reduce_by_torch(target: Tensor, reference: Tensor, asked_target: Tensor, asked_reference: Tensor) -> Reduced:
    """Reduce both rows by plain tensor operations, in float64; ranks come from one sort of each row."""
    x, y = (
        torch.where(shifted < LOGP_FLOOR, LOGP_FLOOR, shifted)
        for shifted in (target.double() - asked_target[:, -1:], reference.double() - asked_reference[:, -1:])
    )
    p, q, d = x.exp(), y.exp(), x - y

    def moments(weight: Tensor, *of: Tensor) -> list[Tensor]:
        return [(value.square() if squared else value).mul(weight).sum(1) for value in of for squared in (False, True)]

    sums = [p.sum(1), *moments(p, x), q.sum(1), *moments(q, y), *moments(p, d), *moments(q, d)]
    return Reduced(
        sums=torch.stack(sums, 1),
        above_target=_above(target, asked_target),
        above_reference=_above(reference, asked_reference),
    )


def _above(rows: Tensor, values: Tensor) -> Tensor:
    falling = torch.sort(rows, dim=1, descending=True).values
    return torch.searchsorted(-falling, -values.contiguous()).int()


def _moments(sums: Tensor) -> Tensor:
    """Return the entropies, spreads, divergences and spreads of the log-ratio, (pred, 8)."""
    p, xp, xxp, q, yq, yyq, dp, ddp, dq, ddq = sums.unbind(1)
    gap = p.log() - q.log()
    columns = [
        p.log() - xp / p,
        q.log() - yq / q,
        (xxp / p - (xp / p) ** 2).clamp(min=0).sqrt(),
        (yyq / q - (yq / q) ** 2).clamp(min=0).sqrt(),
        (dp / p - gap).clamp(min=0),
        (gap - dq / q).clamp(min=0),
        (ddp / p - (dp / p) ** 2).clamp(min=0).sqrt(),
        (ddq / q - (dq / q) ** 2).clamp(min=0).sqrt(),
    ]
    return torch.stack(columns, 1)
