"""Texts and a pair to statistics, baseline scores and features: the one pass every command stands on."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.table import score_evidence
from ltmia.errors import ModelError
from ltmia.features.columns import DEFAULT_K
from ltmia.features.statistics import token_statistics
from ltmia.features.store import StoredText
from ltmia.lm.forward import ForwardClock, forward_pair, length_batches
from ltmia.lm.pair import Pair
from ltmia.lm.tokens import EncodedText, Encoding, encode_texts
from ltmia.records import RaggedStatistics, TokenStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionConfig:
    """What is taken from each text."""

    attacks: tuple[str, ...] = ()
    """Fast attacks to score in the pass."""
    k: int = DEFAULT_K
    """Top and bottom tokens kept per position."""
    max_length: int = 128
    """Most token ids per text; what lies beyond is not read."""
    batch_size: int = 16
    """Texts of full length per forward pass; halved by itself when memory runs out."""
    encoding: Encoding = "default"
    """How special tokens are placed, see `ltmia.lm.tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedBatch:
    """One batch's texts: their statistics end to end, and what is kept of each."""

    statistics: RaggedStatistics
    texts: tuple[StoredText, ...]

    @property
    def rows(self) -> list[int]:
        """Input row of each text."""
        return [text.row for text in self.texts]


@dataclass(slots=True)
class ExtractionClock:
    """Where the time of an extraction went, in seconds."""

    forward: ForwardClock = field(default_factory=ForwardClock)
    feature_seconds: float = 0.0
    """Statistics and baseline scores."""


def extract_batches(
    pair: Pair,
    texts: Sequence[str],
    config: ExtractionConfig,
    *,
    done: frozenset[int] = frozenset(),
    clock: ExtractionClock | None = None,
) -> Iterator[ExtractedBatch]:
    """Run both models over texts, batch by batch; unscorable texts come first, in one batch without positions.

    Args:
        pair: The two models.
        texts: Any strings. Batches come in order of length; `StoredText.row` says where each text belongs.
        config: What to take.
        done: Rows that are not needed again.
        clock: Collects where the time went.

    Raises:
        ModelError: If one text alone does not fit into memory, or the vocabulary is smaller than
            `k`.
    """
    clock = clock or ExtractionClock()
    if config.k > pair.vocab_size:
        raise ModelError(f"k = {config.k} exceeds the shared vocabulary of {pair.vocab_size} ids")
    encoded = encode_texts(
        pair.tokenizer,
        texts,
        max_length=_usable_length(pair, config.max_length),
        vocab_size=pair.vocab_size,
        encoding=config.encoding,
    )
    frequencies = count_tokens(encoded, pair.vocab_size)
    unscorable = [i for i, text in enumerate(encoded) if text.reason and i not in done]
    if unscorable:
        yield _unscorable_batch(unscorable, encoded, config, pair.vocab_size)
    for rows in length_batches(encoded, config.batch_size):
        # Batches are cut from all rows, done or not, so a resumed run pads like an undisturbed one.
        missing = [row for row in rows if row not in done]
        if missing:
            for part in _fitting_parts(pair, encoded, missing, config.k, clock):
                yield _score_batch(pair, part, texts, encoded, frequencies, config, clock)


def count_tokens(encoded: Sequence[EncodedText], vocab_size: int) -> TokenFrequencies:
    """Count the scored tokens of all texts, members or not, for the attacks that weigh tokens by frequency.

    Counting over all candidates needs no outside corpus and, blind to labels, favours neither side.
    """
    counts = np.zeros(vocab_size, np.int64)
    for text in encoded:
        if text.n_scored:
            counts += np.bincount(text.ids[1:], minlength=vocab_size)
    return TokenFrequencies.from_counts(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    rows: list[int]
    statistics: RaggedStatistics


def _usable_length(pair: Pair, max_length: int) -> int:
    limit = pair.max_positions
    return max_length if limit is None else min(max_length, limit)


def _fitting_parts(
    pair: Pair,
    encoded: Sequence[EncodedText],
    rows: list[int],
    k: int,
    clock: ExtractionClock,
) -> Iterator[_Part]:
    """Run a batch; when memory runs out, run its halves."""
    try:
        part = _run_rows(pair, encoded, rows, k, clock)
    except (MemoryError, torch.OutOfMemoryError) as error:
        if len(rows) == 1:
            raise ModelError(
                f"one text of {len(encoded[rows[0]].ids)} tokens does not fit into memory; lower --max-length, or use "
                "--dtype bfloat16"
            ) from error
        part = None
    if part is not None:
        yield part
        return
    middle = len(rows) // 2
    for half in (rows[:middle], rows[middle:]):
        yield from _fitting_parts(pair, encoded, half, k, clock)


def _run_rows(pair: Pair, encoded: Sequence[EncodedText], rows: list[int], k: int, clock: ExtractionClock) -> _Part:
    parts: list[TokenStatistics] = []
    for logits in forward_pair(pair, [encoded[i] for i in rows], clock.forward):
        started = time.perf_counter()
        parts.append(token_statistics(logits.target, logits.reference, logits.truth, k))
        clock.feature_seconds += time.perf_counter() - started
    counts = [encoded[i].n_scored for i in rows]
    statistics = RaggedStatistics(
        tokens=TokenStatistics.concatenate(parts),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        vocab_size=pair.vocab_size,
    )
    return _Part(rows=rows, statistics=statistics)


def _text_read(pair: Pair, text: str, encoded: EncodedText) -> str:
    """Return what the models read of a text."""
    return str(pair.tokenizer.decode(encoded.ids, skip_special_tokens=True)) if encoded.truncated else text


def _score_batch(
    pair: Pair,
    part: _Part,
    texts: Sequence[str],
    encoded: Sequence[EncodedText],
    frequencies: TokenFrequencies,
    config: ExtractionConfig,
    clock: ExtractionClock,
) -> ExtractedBatch:
    started = time.perf_counter()
    stored = []
    for row, tokens in zip(part.rows, part.statistics, strict=True):
        evidence = TextEvidence(
            text=_text_read(pair, texts[row], encoded[row]),
            tokens=tokens,
            token_ids=encoded[row].ids[1:].astype(np.int32),
            token_frequencies=frequencies,
        )
        broken = not np.isfinite(tokens.target_logp + tokens.reference_logp).all()
        stored.append(
            StoredText(
                row=row,
                n_tokens=len(tokens),
                scores=score_evidence(evidence, config.attacks),
                reason=_broken_reason(tokens) if broken else None,
            )
        )
    clock.feature_seconds += time.perf_counter() - started
    return ExtractedBatch(statistics=part.statistics, texts=tuple(stored))


def _broken_reason(tokens: TokenStatistics) -> str | None:
    for name, rank in (("target", tokens.target_rank), ("reference", tokens.reference_rank)):
        if not rank.all():
            return f"the {name} gives NaN logits on it"
    return None


def _unscorable_batch(
    rows: list[int], encoded: Sequence[EncodedText], config: ExtractionConfig, vocab_size: int
) -> ExtractedBatch:
    nothing = token_statistics(torch.empty(0, vocab_size), torch.empty(0, vocab_size), torch.empty(0).long(), config.k)
    return ExtractedBatch(
        statistics=RaggedStatistics(tokens=nothing, offsets=np.zeros(len(rows) + 1, np.int64), vocab_size=vocab_size),
        texts=tuple(
            StoredText(
                row=i,
                n_tokens=0,
                scores=dict.fromkeys(config.attacks, float("nan")),
                reason=encoded[i].reason,
            )
            for i in rows
        ),
    )
