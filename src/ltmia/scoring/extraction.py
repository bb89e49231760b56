"""The shared pass: runs both models over texts, and computes token statistics and the scores of fast attacks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.selection import score_evidence
from ltmia.errors import ModelError
from ltmia.features.columns import DEFAULT_K
from ltmia.features.journal import StoredText
from ltmia.features.statistics import token_statistics
from ltmia.models.batching import BatchSize
from ltmia.models.forward import batches_to_run
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText, Encoding, encode_texts
from ltmia.records import RaggedStatistics, TokenStatistics
from ltmia.scoring.pair_runner import BatchStatistics, ExtractionClock, PairRunner
from ltmia.weights.gradients import GradientReader

DEFAULT_LENGTH = 512
"""Tokens read of each text if nobody says how many were trained on; see docs/study.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionConfig:
    """Settings of an extraction."""

    attacks: tuple[str, ...] = ()
    """Fast attacks to score in the pass."""
    k: int = DEFAULT_K
    """Number of top and bottom tokens kept per position."""
    max_length: int = DEFAULT_LENGTH
    """Largest number of token ids per text; the rest is not read."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass; halved if memory runs out. "auto": as many as fit into memory."""
    expectations: tuple[str, ...] = ("full",)
    """Kinds of expectation that a store learns from all its texts, see `ltmia.features.columns.EXPECTATIONS`."""
    encoding: Encoding = "default"
    """How special tokens are placed, see `ltmia.models.tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionRun:
    """State of one run of an extraction."""

    encoded: Sequence[EncodedText]
    """All texts as the models read them."""
    done: frozenset[int] = frozenset()
    """Rows that an earlier run has done."""
    clock: ExtractionClock = field(default_factory=ExtractionClock)
    """Collects where the time goes."""
    scratch: Path | None = None
    """Folder for the hidden states of a model that waits on disk; None: the system's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedBatch:
    """One batch of texts: their concatenated statistics, and each text's entry in the store."""

    statistics: RaggedStatistics
    texts: tuple[StoredText, ...]

    @property
    def rows(self) -> list[int]:
        """Input row of each text."""
        return [text.row for text in self.texts]


def extract_batches(
    pair: Pair,
    texts: Sequence[str],
    config: ExtractionConfig,
    run: ExtractionRun | None = None,
    *,
    gradients: GradientReader | None = None,
) -> Iterator[ExtractedBatch]:
    """Run both models over texts, batch by batch; unscorable texts come first, in one batch without positions.

    Args:
        pair: The two models.
        texts: Any strings. Batches come in order of length; `StoredText.row` says where each text belongs.
        config: Settings of the extraction.
        run: State of the run. None: all texts, without prompts, are encoded and run.
        gradients: Reads gradients of the same texts in the same passes.

    Raises:
        ModelError: If one text alone does not fit into memory, or the vocabulary is smaller than
            `k`.
    """
    if config.k > pair.vocab_size:
        raise ModelError(f"k = {config.k} exceeds the shared vocabulary of {pair.vocab_size} ids")
    run = run or ExtractionRun(encoded=encode(pair, texts, config))
    encoded = run.encoded
    runner = PairRunner(pair, encoded, config.k, run.clock, gradients)
    to_run = batches_to_run(pair, encoded, config.batch_size, run.done)
    batches = runner.sequential(to_run, run.scratch) if pair.is_sequential else runner.side_by_side(to_run)
    yield from score_batches(
        batches, lambda row: _text_read(pair, texts[row], encoded[row]), run, config, pair.vocab_size
    )


def score_batches(
    batches: Iterable[BatchStatistics],
    text_read: Callable[[int], str],
    run: ExtractionRun,
    config: ExtractionConfig,
    vocab_size: int,
) -> Iterator[ExtractedBatch]:
    """Score batches as they come; unscorable texts come first.

    Args:
        batches: Statistics of all scorable texts that are not done.
        text_read: Returns the part of a row's text that was read.
        run: State of the run.
        config: Settings of the extraction.
        vocab_size: Number of ids that both models know.
    """
    encoded = run.encoded
    frequencies = count_tokens(encoded, vocab_size)
    unscorable = [i for i, text in enumerate(encoded) if text.reason and i not in run.done]
    if unscorable:
        yield _unscorable_batch(unscorable, encoded, config, vocab_size)
    for batch in batches:
        yield _score_batch(batch, text_read, encoded, frequencies, config, run.clock)


def encode(
    pair: Pair, texts: Sequence[str], config: ExtractionConfig, starts: Sequence[int] | None = None
) -> list[EncodedText]:
    """Tokenise texts as the pass reads them."""
    return encode_texts(
        pair.tokenizer,
        texts,
        max_length=usable_length(pair, config.max_length),
        vocab_size=pair.vocab_size,
        encoding=config.encoding,
        starts=starts,
    )


def count_tokens(encoded: Sequence[EncodedText], vocab_size: int) -> TokenFrequencies:
    """Count the scored tokens of all texts, members or not, for the attacks that weigh tokens by frequency.

    Counts over all texts need no other corpus and, since they do not use labels, favour neither side.
    """
    counts = np.zeros(vocab_size, np.int64)
    for text in encoded:
        if text.n_scored:
            counts += np.bincount(text.scored_ids, minlength=vocab_size)
    return TokenFrequencies.from_counts(counts)


def usable_length(pair: Pair, max_length: int) -> int:
    """Return how many token ids of a text are read: at most `max_length`, and at most what both models take."""
    limit = pair.max_positions
    return max_length if limit is None else min(max_length, limit)


def _text_read(pair: Pair, text: str, encoded: EncodedText) -> str:
    """Return the part of a text that is read and scored; the prompt is left out."""
    if encoded.start > 1:
        return str(pair.tokenizer.decode(encoded.scored_ids, skip_special_tokens=True))
    return str(pair.tokenizer.decode(encoded.ids, skip_special_tokens=True)) if encoded.truncated else text


def _score_batch(
    batch: BatchStatistics,
    text_read: Callable[[int], str],
    encoded: Sequence[EncodedText],
    frequencies: TokenFrequencies,
    config: ExtractionConfig,
    clock: ExtractionClock,
) -> ExtractedBatch:
    started = time.perf_counter()
    stored = []
    for row, tokens in zip(batch.rows, batch.statistics, strict=True):
        evidence = TextEvidence(
            text=text_read(row),
            tokens=tokens,
            token_ids=encoded[row].scored_ids.astype(np.int32),
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
    return ExtractedBatch(statistics=batch.statistics, texts=tuple(stored))


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
