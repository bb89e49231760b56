"""Logits of both models to `TokenStatistics`: numba on CPU and MPS, torch on any other device, the same numbers.

Takes raw float32 logits of shape (pred, vocab) over the shared ids. If the logits of one model hold NaN or no
finite value, every float is NaN and every rank 0, except the true token's rank under the other model, which tells which
model is broken.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ltmia.kernels.cpu_statistics import fill_statistics
from ltmia.kernels.torch_statistics import fill_statistics_torch
from ltmia.records import TokenStatistics

ON_CPU = ("cpu", "mps")
"""Devices whose logits the CPU reduces. MPS knows no float64, and its memory is the CPU's."""
# The order in which both kernels fill the columns of their first output.
SCALARS = (
    "target_logp",
    "reference_logp",
    "target_entropy",
    "reference_entropy",
    "target_spread",
    "reference_spread",
    "divergence",
    "reverse_divergence",
    "target_ratio_spread",
    "reference_ratio_spread",
    "normalizer_gap",
    "reference_top_logp",
)


def token_statistics(
    target: Float32[Tensor, "pred vocab"],
    reference: Float32[Tensor, "pred vocab"],
    truth: Int64[Tensor, " pred"],
    k: int,
) -> TokenStatistics:
    """Reduce the logits of some positions to their statistics.

    Args:
        target: Raw logits of the target over the shared ids.
        reference: Raw logits of the reference over the same ids.
        truth: Id of the token that really followed, per position.
        k: Top and bottom tokens to keep; at most the vocabulary size.

    Raises:
        ValueError: If `k` does not fit the vocabulary or an id lies outside it.
    """
    n, vocab = target.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"k = {k} must lie between 1 and the vocabulary size {vocab}")
    if n and not 0 <= int(truth.min()) <= int(truth.max()) < vocab:
        raise ValueError(f"token ids must lie in [0, {vocab}), the ids both models share")
    if target.device.type in ON_CPU:
        arrays = empty_statistics(n, k)
        rows = [logits.detach().cpu().contiguous().numpy() for logits in (target, reference)]
        n_threads = min(torch.get_num_threads(), max(n, 1))

        def fill(first: int) -> None:
            fill_statistics(*rows, truth.cpu().numpy(), arrays, first, n_threads)

        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(fill, range(n_threads)))
    else:
        filled = fill_statistics_torch(target, reference, truth.to(target.device), k)
        arrays = tuple(tensor.cpu().numpy() for tensor in filled)
    return named_statistics(arrays)


def empty_statistics(n: int, k: int) -> tuple[np.ndarray, ...]:
    """Allocate the arrays that a kernel fills: scalars, three log-probability blocks, two ranks, three rank blocks."""
    floats = [np.empty((n, width), np.float32) for width in (len(SCALARS), k, k, k)]
    ranks = [np.empty((n, width), np.int32) for width in (2, k, k, k)]
    return (*floats, *ranks)


def named_statistics(arrays: tuple[np.ndarray, ...]) -> TokenStatistics:
    """Name the columns that a kernel filled."""
    scalars, top_logp, top_ratio, low_ratio, ranks, top_rank, reference_top_rank, low_rank = arrays
    columns = {name: scalars[:, i].copy() for i, name in enumerate(SCALARS)}
    return TokenStatistics(
        **columns,
        target_rank=ranks[:, 0].copy(),
        reference_rank=ranks[:, 1].copy(),
        top_logp=top_logp,
        top_log_ratio=top_ratio,
        top_reference_rank=top_rank,
        reference_top_target_rank=reference_top_rank,
        bottom_log_ratio=low_ratio,
        bottom_reference_rank=low_rank,
    )
