"""Measures a pair's numeric noise by scoring texts again, and tests whether its base is the right one."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from ltmia.evaluation.model_checks import BaseComparison, Rescored
from ltmia.models.adapters import base_parameters
from ltmia.models.head import HALF
from ltmia.models.pair import Pair
from ltmia.models.spread import is_offloaded
from ltmia.records import Texts, TokenStatistics
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractedBatch, ExtractionConfig, ExtractionRun, extract_batches

N_FLOAT32 = 2
"""Texts that are scored in float32, which briefly takes twice the memory of half precision."""
N_COMPARED_WEIGHTS = 65_536
"""Number of values of each parameter, from its start, that are compared."""
MEMORY_RESERVE = 2.0
"""Free memory must be this many times the extra memory for float32."""


def weight_change(pair: Pair) -> tuple[float, float | None]:
    """Return the share of parameters with a counterpart in the base, and their mean change relative to the base.

    The change is sum |a - b| / sum |b| over the first `N_COMPARED_WEIGHTS` numbers of every shared parameter, few
    enough to keep in memory until the other model is loaded. None for an adapter, which does not change the base's
    weights, or adds again what it subtracts. NaN if a number is not finite, infinite if there is nothing to compare
    with.
    """
    if pair.reference is None:
        return 1.0, None
    theirs, ours = (_leading_weights(base_parameters(model)) for model in (pair.reference, pair.target))
    shared = {name for name in ours.keys() & theirs.keys() if ours[name].fits(theirs[name])}
    moved = size = 0.0
    for name in shared:
        n = min(len(ours[name].values), len(theirs[name].values))
        a, b = ours[name].values[:n], theirs[name].values[:n]
        moved += float((a - b).abs().sum())
        size += float(b.abs().sum())
    matched = sum(min(ours[name].numel, theirs[name].numel) for name in shared)
    if isinstance(pair.target, PeftModel):
        return matched / max(sum(weights.numel for weights in theirs.values()), 1), None
    total = sum(weights.numel for weights in ours.values())
    change = moved / size if size else math.inf
    return matched / max(total, 1), change if math.isfinite(moved) else math.nan


@dataclass(frozen=True, slots=True)
class _Leading:
    """The leading numbers of a parameter, and its shape."""

    values: torch.Tensor
    row: tuple[int, ...]
    """Its shape without the first axis."""
    numel: int

    def fits(self, other: "_Leading") -> bool:
        """Say whether both can be the same parameter; a larger vocabulary changes only the first axis."""
        return self.row == other.row


def _leading_weights(parameters: Mapping[str, torch.Tensor]) -> dict[str, _Leading]:
    return {
        name: _Leading(
            parameter.detach().flatten()[:N_COMPARED_WEIGHTS].float().cpu(),
            tuple(parameter.shape[1:]),
            parameter.numel(),
        )
        for name, parameter in parameters.items()
    }


def compare_with_base(pair: LoadedPair, texts: Texts, max_length: int) -> BaseComparison:
    """Compare target and reference by weights, and by their log-probabilities of some texts, preferably non-members."""
    batches = _extracted(pair, texts, ExtractionConfig(max_length=max_length))
    parts = [batch.statistics.tokens for batch in batches]
    if not parts:
        return compare_losses(pair.models, np.empty(0), np.empty(0))
    tokens = TokenStatistics.concatenate(parts)
    return compare_losses(pair.models, tokens.target_logp, tokens.reference_logp)


def compare_losses(pair: Pair, target_logp: np.ndarray, reference_logp: np.ndarray) -> BaseComparison:
    """Compare target and reference by weights, and by their log-probabilities of the same tokens."""
    shared, change = weight_change(pair)
    target, reference = target_logp.astype(np.float64), reference_logp.astype(np.float64)
    usable = np.isfinite(target + reference)
    target, reference = target[usable], reference[usable]
    varied = len(target) > 1 and target.std() > 0 and reference.std() > 0
    return BaseComparison(
        shared=shared,
        change=change,
        difference=float(np.abs(target - reference).mean()) if len(target) else math.nan,
        agreement=float(np.corrcoef(target, reference)[0, 1]) if varied else math.nan,
        target_loss=-float(target.mean()) if len(target) else math.nan,
        reference_loss=-float(reference.mean()) if len(target) else math.nan,
    )


def rescore(pair: LoadedPair, texts: Texts, in_batches: Sequence[float], max_length: int) -> Rescored:
    """Score a few texts again, each alone, and the first of them also in float32 if the models have less precision.

    Args:
        pair: The models.
        texts: Texts to score.
        in_batches: Mean log-ratio of each text in the audit.
        max_length: Token ids read of each text.
    """
    alone = [_difference(pair, texts.take([row]), max_length) for row in range(len(texts))]
    noise = max((abs(a - b) for a, b in zip(alone, in_batches, strict=True)), default=0.0)
    if pair.models.is_sequential:
        return Rescored(noise=noise, float32=None, reason="only one of the models is in memory at a time")
    if any(is_offloaded(model) for model in _models(pair.models)):
        return Rescored(noise=noise, float32=None, reason="some weights are loaded only while their layer runs")
    half = [p for model in _models(pair.models) for p in (*model.parameters(), *model.buffers()) if p.dtype in HALF]
    if not half or not len(texts):
        return Rescored(noise=noise, float32=None, reason="computed in float32 anyway" if not half else "no texts")
    needed = 2 * sum(p.numel() for p in half)
    if MEMORY_RESERVE * needed > _free_memory(pair.models.device):
        return Rescored(noise=noise, float32=None, reason=f"float32 takes {needed / 2**30:.1f} GiB more than is free")
    try:
        with _as_float32(half):
            exact = [_difference(pair, texts.take([row]), max_length) for row in range(len(texts))[:N_FLOAT32]]
    except (MemoryError, torch.OutOfMemoryError):
        return Rescored(noise=noise, float32=None, reason="there was not enough memory")
    shift = max(abs(a - b) for a, b in zip(exact, alone[:N_FLOAT32], strict=True))
    return Rescored(noise=noise, float32=shift)


def _difference(pair: LoadedPair, text: Texts, max_length: int) -> float:
    config = ExtractionConfig(attacks=("difference",), max_length=max_length)
    return next(batch.texts[0].scores["difference"] for batch in _extracted(pair, text, config))


def _extracted(pair: LoadedPair, texts: Texts, config: ExtractionConfig) -> Iterator[ExtractedBatch]:
    return extract_batches(pair.models, texts.texts, config, ExtractionRun(encoded=pair.encode(texts, config)))


@contextmanager
def _as_float32(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Convert weights to float32 temporarily. Half-precision numbers are exact in float32, so nothing is lost."""
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def _models(pair: Pair) -> list[nn.Module]:
    return [pair.target] if pair.reference is None else [pair.target, pair.reference]


def _free_memory(device: torch.device) -> float:
    """Return the free bytes of a device; unknown counts as none."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 0.0
