"""What servers of log-probabilities give: taken from one model's logits, and put together for two models."""

from dataclasses import replace

from jaxtyping import Float32, Int64
from torch import Tensor

from ltmia.features.statistics import empty_statistics, named_statistics, token_statistics
from ltmia.records import ModelStatistics, TokenStatistics


def model_statistics(
    logits: Float32[Tensor, "pred vocab"], truth: Int64[Tensor, " pred"], n_top: int
) -> ModelStatistics:
    """Reduce one model's logits to what a server would give; the very numbers that `token_statistics` gives of a pair.

    Args:
        logits: Raw logits.
        truth: Id of the token that really followed, per position.
        n_top: Most likely tokens kept.
    """
    found = token_statistics(logits, logits, truth, n_top)
    return ModelStatistics(logp=found.target_logp, rank=found.target_rank, top_logp=found.top_logp)


def served_statistics(target: ModelStatistics, reference: ModelStatistics, k: int) -> TokenStatistics:
    """Put together what two servers give of the same positions; NaN and rank 0 stand for all the rest.

    Args:
        target: At least the `k` most likely tokens.
        reference: At least the most likely one.
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
