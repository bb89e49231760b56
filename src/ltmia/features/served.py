"""Reduces one model's logits to what a log-probability server returns, and joins the values of two models."""

from dataclasses import replace

from jaxtyping import Float32, Int64
from torch import Tensor

from ltmia.features.statistics import empty_statistics, named_statistics, token_statistics
from ltmia.records import ModelStatistics, TokenStatistics


def model_statistics(
    logits: Float32[Tensor, "pred vocab"], truth: Int64[Tensor, " pred"], n_top: int
) -> ModelStatistics:
    """Reduce one model's logits to what a server would return; the numbers equal those of `token_statistics`.

    Args:
        logits: Raw logits.
        truth: Id of the token that really followed, per position.
        n_top: Number of most likely tokens kept.
    """
    found = token_statistics(logits, logits, truth, n_top)
    return ModelStatistics(logp=found.target_logp, rank=found.target_rank, top_logp=found.top_logp)


def served_statistics(target: ModelStatistics, reference: ModelStatistics, k: int) -> TokenStatistics:
    """Join what two servers return for the same positions; all other values are NaN, or rank 0.

    Args:
        target: Values of the target, with at least the `k` most likely tokens.
        reference: Values of the reference, with at least the most likely token.
        k: Top (and bottom) tokens of the result.
    """
    arrays = empty_statistics(len(target), k)
    for array in arrays:
        array.fill(0 if array.dtype.kind == "i" else float("nan"))
    return replace(
        named_statistics(arrays),
        target_logp=target.logp,
        reference_logp=reference.logp,
        target_rank=target.rank,
        reference_rank=reference.rank,
        top_logp=target.top_logp[:, :k],
        reference_top_logp=reference.top_logp[:, 0],
    )
