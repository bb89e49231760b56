"""Token statistics to feature columns, a batch of texts at a time.

Row t describes the prediction of one real token; padding is zero and masked.

Depends on the feature versions of `columns`, and not on logits, models or texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from ltmia.errors import ConfigError
from ltmia.features.columns import (
    EXPECTATION_COLUMNS,
    LITE_COLUMNS,
    LITE_TOP,
    LOGRATIO_COLUMNS,
    LOGRATIO_TOP,
    feature_columns,
)
from ltmia.records import RaggedStatistics

SPREAD_FLOOR = 1e-3
"""Smallest standard deviation to divide by; below it the distribution is nearly certain and surprise means nothing."""
SURPRISE_LIMIT = 20.0
"""Standardised values are clipped here, so that one token cannot dominate."""
RATIO_LIMIT = 30.0
"""Log-ratios are clipped here, in nats; only -inf logits reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBatch:
    """Features of several texts, padded to the longest (or to a fixed length)."""

    values: Float32[np.ndarray, "batch seq feat"]
    """Zero where masked."""
    mask: Bool[np.ndarray, "batch seq"]
    """True on scored positions. A text without any is unscorable."""
    version: str
    summary: Float32[np.ndarray, "batch n_summary"] | None = None
    """Per-text statistics (scores of hand-made attacks), for classifiers that use them."""

    def __len__(self) -> int:
        return len(self.values)


def per_token_features(
    texts: RaggedStatistics,
    *,
    version: str,
    seq_len: int | None = None,
    summary: Float32[np.ndarray, "batch n_summary"] | None = None,
) -> FeatureBatch:
    """Compute the feature columns of some texts and pad them into one batch.

    A text with a NaN or infinite feature (its model gave NaN) is masked completely: it is unscorable and does not
    affect other texts.

    Args:
        texts: Statistics of the texts' scored positions.
        version: One of `columns.FEATURE_VERSIONS`.
        seq_len: Length to pad to; the longest text's when None.
        summary: Per-text statistics to add to the batch.

    Raises:
        ConfigError: If there is no such version.
        ValueError: If a text is longer than `seq_len`.
    """
    n_features = len(feature_columns(version, texts.tokens.k))
    counts: Int64[np.ndarray, " batch"] = np.diff(texts.offsets)
    longest = int(counts.max(initial=0))
    length = max(longest, 1) if seq_len is None else seq_len
    if longest > length:
        raise ValueError(f"a text of {longest} scored positions does not fit seq_len = {length}")
    flat = _VALUES[version](texts)
    broken = np.asarray(~np.isfinite(flat).all(axis=1))
    counts[segment_sums(broken.astype(np.int64), texts.offsets) > 0] = 0
    real = np.repeat(counts > 0, np.diff(texts.offsets))
    mask = np.arange(length) < counts[:, None]
    values = np.zeros((len(texts), length, n_features), np.float32)
    values[mask] = flat[real]
    return FeatureBatch(values=values, mask=mask, version=version, summary=summary)


def log_rank(rank: np.ndarray, vocab_size: int) -> np.ndarray:
    """Map ranks 1..V to log(1 + r) / log(V + 1), as published."""
    return np.log1p(rank) / np.log(vocab_size + 1.0)


def segment_sums(values: Any, offsets: np.ndarray) -> np.ndarray:
    """Sum the values of each text; an empty text sums to 0."""
    # reduceat does not take empty runs, and cumulative sums would spread one text's NaN to all later texts.
    filled = np.diff(offsets) > 0
    sums = np.zeros(len(filled), values.dtype)
    if filled.any():
        sums[filled] = np.add.reduceat(values, offsets[:-1][filled])
    return sums


def _published(texts: RaggedStatistics) -> Float32[np.ndarray, "pred feat"]:
    """Lay out the published columns (arXiv 2604.03199), logits relative to the larger of the two models'."""

    def pair(gap: np.ndarray) -> list[np.ndarray]:
        # a - max(a, b) and b - max(a, b) depend on a - b alone.
        return [np.minimum(gap, 0.0), np.minimum(-gap, 0.0)]

    tokens, vocab_size = texts.tokens, texts.vocab_size
    gap = tokens.normalizer_gap
    ratio = _finite_ratio(tokens.log_ratio)
    columns = [
        *pair(ratio + gap),
        log_rank(tokens.target_rank, vocab_size),
        log_rank(tokens.reference_rank, vocab_size),
    ]
    top, bottom = _finite_ratio(tokens.top_log_ratio), _finite_ratio(tokens.bottom_log_ratio)
    for i in range(tokens.k):
        columns += pair(top[:, i] + gap)
        columns.append(log_rank(tokens.top_reference_rank[:, i], vocab_size))
        columns.append(log_rank(tokens.reference_top_target_rank[:, i], vocab_size))
    for i in range(tokens.k):
        columns += pair(bottom[:, i] + gap)
        columns.append(log_rank(tokens.bottom_reference_rank[:, i], vocab_size))
    losses = [-tokens.target_logp, -tokens.reference_logp, -tokens.log_ratio]
    return _stack([*columns, *losses, *_sequence_columns(losses, texts.offsets)])


def _sequence_columns(losses: list[np.ndarray], offsets: np.ndarray) -> list[np.ndarray]:
    """Repeat on each token its text's mean and standard deviation of each loss, and the sum of the last."""
    counts = np.diff(offsets)
    columns = []
    for loss in losses:
        wide = loss.astype(np.float64)
        mean = np.repeat(segment_sums(wide, offsets) / np.maximum(counts, 1), counts)
        variance = np.repeat(segment_sums((wide - mean) ** 2, offsets) / np.maximum(counts, 1), counts)
        columns += [mean, np.sqrt(variance + 1e-6)]
    columns.append(np.repeat(segment_sums(losses[-1].astype(np.float64), offsets), counts))
    return columns


def named_values(texts: RaggedStatistics, names: Sequence[str]) -> Float32[np.ndarray, "pred feat"]:
    """Compute some columns of `logratio` or `lite` that need no expectation.

    If a log-probability server gives enough for all of them, no other statistic is read.
    """
    columns = _truth_columns(texts)
    if not columns.keys() >= set(names):
        columns |= _distribution_columns(texts)
    return _stack([columns[name] for name in names])


def _truth_columns(texts: RaggedStatistics) -> dict[str, np.ndarray]:
    """Compute the columns that need only the true token's log-probability and rank, and the top few."""
    tokens, vocab_size = texts.tokens, texts.vocab_size
    ratio = _finite_ratio(tokens.log_ratio)
    target_logp = np.maximum(tokens.target_logp, -RATIO_LIMIT)
    reference_logp = np.maximum(tokens.reference_logp, -RATIO_LIMIT)
    target_rank, reference_rank = (log_rank(r, vocab_size) for r in (tokens.target_rank, tokens.reference_rank))
    p_target, p_reference = np.exp(target_logp), np.exp(reference_logp)
    return {
        "target_logp": target_logp,
        "reference_logp": reference_logp,
        "log_ratio": ratio,
        "log_ratio_tanh": np.tanh(ratio),
        "log_ratio_tanh4": np.tanh(4 * ratio),
        "log_ratio_asinh": np.arcsinh(4 * ratio),
        "target_rank": target_rank,
        "reference_rank": reference_rank,
        "rank_gain": reference_rank - target_rank,
        "target_p": p_target,
        "reference_p": p_reference,
        "p_gain": p_target - p_reference,
        "target_hit": tokens.target_rank == 1,
        "reference_hit": tokens.reference_rank == 1,
        "target_top_gap": np.maximum(tokens.target_logp - tokens.top_logp[:, 0], -RATIO_LIMIT),
        "reference_top_gap": np.maximum(tokens.reference_logp - tokens.reference_top_logp, -RATIO_LIMIT),
        "reference_top_logp": np.maximum(tokens.reference_top_logp, -RATIO_LIMIT),
        **_choices("target_top_logp", np.maximum(tokens.top_logp, -RATIO_LIMIT), LITE_TOP),
    }


def _distribution_columns(texts: RaggedStatistics) -> dict[str, np.ndarray]:
    """Compute the columns that follow from both models' distributions over the whole vocabulary.

    The surprises standardise a log-probability by its own distribution, as Min-K%++ does (arXiv 2404.02936). The ratio
    surprises do the same for the log-ratio, with the mean and standard deviation that D_t has under the model named.
    So weak and strong fine-tunes give values on one scale.
    """
    tokens, vocab_size = texts.tokens, texts.vocab_size
    ratio = _finite_ratio(tokens.log_ratio)
    surprises = [
        _standardize(np.maximum(logp, -RATIO_LIMIT), -entropy, spread)
        for logp, entropy, spread in (
            (tokens.target_logp, tokens.target_entropy, tokens.target_spread),
            (tokens.reference_logp, tokens.reference_entropy, tokens.reference_spread),
        )
    ]
    moved = np.sqrt(tokens.divergence + tokens.reverse_divergence)
    top = _finite_ratio(tokens.top_log_ratio)
    others = log_rank(tokens.reference_top_target_rank, vocab_size)
    return {
        "target_entropy": tokens.target_entropy,
        "reference_entropy": tokens.reference_entropy,
        "entropy_gain": tokens.reference_entropy - tokens.target_entropy,
        "target_surprise": surprises[0],
        "reference_surprise": surprises[1],
        "surprise_gain": surprises[0] - surprises[1],
        "divergence": np.sqrt(tokens.divergence),
        "reverse_divergence": np.sqrt(tokens.reverse_divergence),
        "target_ratio_spread": tokens.target_ratio_spread,
        "reference_ratio_spread": tokens.reference_ratio_spread,
        "ratio_surprise_target": _standardize(ratio, tokens.divergence, tokens.target_ratio_spread),
        "ratio_surprise_reference": _standardize(ratio, -tokens.reverse_divergence, tokens.reference_ratio_spread),
        "log_ratio_scaled": _standardize(ratio, np.zeros_like(ratio), moved),
        **_choices("top_log_ratio", top, LOGRATIO_TOP),
        "top_log_ratio_mean": top.mean(axis=1),
        "top_log_ratio_spread": top.std(axis=1),
        **_choices("top_reference_rank", log_rank(tokens.top_reference_rank, vocab_size), LOGRATIO_TOP - 1),
        **_choices("reference_top_target_rank", others, LOGRATIO_TOP - 1),
    }


def _choices(name: str, block: Float[np.ndarray, "pred k"], n: int) -> dict[str, np.ndarray]:
    """Return the first n of the top k columns; if k is smaller than n, the last one is repeated."""
    return {f"{name}_{i + 1}": block[:, min(i, block.shape[1] - 1)] for i in range(n)}


def _logratio(texts: RaggedStatistics) -> Float32[np.ndarray, "pred feat"]:
    return named_values(texts, LOGRATIO_COLUMNS)


def _excess(texts: RaggedStatistics) -> Float32[np.ndarray, "pred feat"]:
    return _with_expectation(texts, LOGRATIO_COLUMNS)


def _lite(texts: RaggedStatistics) -> Float32[np.ndarray, "pred feat"]:
    return _with_expectation(texts, LITE_COLUMNS[: -len(EXPECTATION_COLUMNS)])


def _with_expectation(texts: RaggedStatistics, names: Sequence[str]) -> Float32[np.ndarray, "pred feat"]:
    """Compute some columns, followed by D_t, its expectation and its excess.

    Raises:
        ConfigError: If there is no expectation.
    """
    expected = texts.expectation
    if expected is None:
        raise ConfigError("these features need the expected log-ratios of all texts; extract the texts together")
    scaled = expected.excess(_finite_ratio(texts.tokens.log_ratio))
    columns = [
        np.clip(scaled, -SURPRISE_LIMIT, SURPRISE_LIMIT),
        np.tanh(scaled),
        np.tanh(3 * scaled),
        np.clip(expected.log_ratio / expected.spread, -SURPRISE_LIMIT, SURPRISE_LIMIT),
        np.log1p(expected.token_count),
        np.log1p(expected.pair_count),
    ]
    return np.concatenate([named_values(texts, names), _stack(columns)], axis=1)


_VALUES = {"published": _published, "logratio": _logratio, "excess": _excess, "lite": _lite}


def _stack(columns: list[np.ndarray]) -> Float32[np.ndarray, "pred feat"]:
    return np.stack(columns, axis=1).astype(np.float32)


def _standardize(value: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    scaled = (value - mean) / np.maximum(spread, SPREAD_FLOOR)
    return np.clip(scaled, -SURPRISE_LIMIT, SURPRISE_LIMIT)


def _finite_ratio(ratio: np.ndarray) -> np.ndarray:
    """Clip log-ratios; if both log-probabilities are -inf, the ratio is 0.

    A NaN that stems from NaN logits stays visible through the token's other columns.
    """
    return np.clip(np.nan_to_num(ratio, nan=0.0, posinf=np.inf, neginf=-np.inf), -RATIO_LIMIT, RATIO_LIMIT)
