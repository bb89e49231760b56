"""The rank kernel for devices other than the CPU: plain tensor operations, the numbers of `cpu_statistics`.

Ranks come from one sort of each row and `searchsorted`, never from comparing every id with every
query.
"""

import torch
from torch import Tensor

LOGP_FLOOR = -87.0
"""Log-probabilities below this are taken as this in sums over the vocabulary, as in `cpu_statistics`."""


def fill_statistics_torch(target: Tensor, reference: Tensor, truth: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return the arrays of `statistics.empty_statistics`, filled.

    Args:
        target: Raw float32 logits, (pred, vocab).
        reference: Raw float32 logits of the same shape.
        truth: Int64 ids of the true tokens, (pred,).
        k: Top and bottom tokens to keep.
    """
    # + 0.0 turns -0.0 into 0.0, which a stable sort would otherwise treat alike but bitwise code
    # would not.
    a, b = target + 0.0, reference + 0.0
    sorted_a, order_a = torch.sort(a, dim=1, descending=True, stable=True)
    sorted_b, order_b = torch.sort(b, dim=1, descending=True, stable=True)
    top, reference_top = order_a[:, :k], order_b[:, :k]
    low = torch.argsort(a, dim=1, stable=True)[:, :k]
    y = truth[:, None]
    lse_a = torch.logsumexp(a.double(), 1, keepdim=True)
    lse_b = torch.logsumexp(b.double(), 1, keepdim=True)
    scalars = _scalars(a, b, y, lse_a, lse_b)

    def log_ratio(ids: Tensor) -> Tensor:
        return (a.gather(1, ids) - lse_a) - (b.gather(1, ids) - lse_b)

    ranks = torch.cat([_ranks(sorted_a, a.gather(1, y)), _ranks(sorted_b, b.gather(1, y))], 1)
    floats = [scalars, a.gather(1, top) - lse_a, log_ratio(top), log_ratio(low)]
    rank_blocks = [
        _ranks(sorted_b, b.gather(1, top)),
        _ranks(sorted_a, a.gather(1, reference_top)),
        _ranks(sorted_b, b.gather(1, low)),
    ]
    own = ~torch.isfinite(torch.cat([lse_a, lse_b], 1))
    broken = own.any(1, keepdim=True)
    return (
        *(block.float().masked_fill(broken, torch.nan) for block in floats),
        ranks.int().masked_fill(own, 0),
        *(block.int().masked_fill(broken, 0) for block in rank_blocks),
    )


def _ranks(falling: Tensor, values: Tensor) -> Tensor:
    """Return 1 + the number of entries of each falling row strictly above each value."""
    return 1 + torch.searchsorted(-falling, -values.contiguous())


def _scalars(a: Tensor, b: Tensor, y: Tensor, lse_a: Tensor, lse_b: Tensor) -> Tensor:
    max_a, max_b = a.amax(1, keepdim=True), b.amax(1, keepdim=True)
    x = (a - max_a).double().clamp(min=LOGP_FLOOR)
    z = (b - max_b).double().clamp(min=LOGP_FLOOR)
    p, q = torch.softmax(x, 1), torch.softmax(z, 1)
    log_p, log_q = x - (lse_a - max_a), z - (lse_b - max_b)
    ratio = log_p - log_q
    mean_p, mean_q = (p * log_p).sum(1), (q * log_q).sum(1)
    ratio_p, ratio_q = (p * ratio).sum(1), (q * ratio).sum(1)
    columns = [
        (a.gather(1, y) - lse_a)[:, 0],
        (b.gather(1, y) - lse_b)[:, 0],
        -mean_p,
        -mean_q,
        ((p * log_p**2).sum(1) - mean_p**2).clamp(min=0).sqrt(),
        ((q * log_q**2).sum(1) - mean_q**2).clamp(min=0).sqrt(),
        ratio_p.clamp(min=0),
        (-ratio_q).clamp(min=0),
        ((p * ratio**2).sum(1) - ratio_p**2).clamp(min=0).sqrt(),
        ((q * ratio**2).sum(1) - ratio_q**2).clamp(min=0).sqrt(),
        (lse_a - lse_b)[:, 0],
        (max_b - lse_b)[:, 0],
    ]
    return torch.stack(columns, 1)
