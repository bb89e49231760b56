"""Runs both models over batches of texts and computes token statistics, with both or only one model in memory.

If memory runs out, a batch is run in halves, and finished work is kept. Knows no attack and no store.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from ltmia.evaluation.results import Reused
from ltmia.features.statistics import token_statistics
from ltmia.models.batching import Halving
from ltmia.models.forward import ForwardClock, KnownStates, forward_pair, scored_states
from ltmia.models.pair import Pair
from ltmia.models.sequential import KeptStates
from ltmia.models.tokens import EncodedText
from ltmia.records import RaggedStatistics, TokenStatistics
from ltmia.weights.gradients import GradientReader

STATES_BYTES = 8 * 2**30
"""Bytes of hidden states that are kept on disk before the reference is loaded. More texts take several rounds, each of
which loads both models once."""


@dataclass(slots=True)
class ExtractionClock:
    """Time of an extraction, in seconds, and work that was reused."""

    forward: ForwardClock = field(default_factory=ForwardClock)
    feature_seconds: float = 0.0
    """Statistics and baseline scores."""
    reused: list[Reused] = field(default_factory=list)
    """Work that an earlier run had done."""
    earlier: float = 0.0
    """Seconds of that work; the other figures include them."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of the models and of the statistics."""
        return self.forward.seconds, self.feature_seconds

    def add(self, other: "ExtractionClock") -> None:
        """Add the time and the reused work of another extraction."""
        self.forward.seconds += other.forward.seconds
        self.feature_seconds += other.feature_seconds
        self.earlier += other.earlier
        self.reused += other.reused

    def add_earlier(self, seconds: tuple[float, float]) -> None:
        """Add the time of work that an earlier run did, for models and statistics."""
        self.forward.seconds += seconds[0]
        self.feature_seconds += seconds[1]
        self.earlier += sum(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics:
    """Statistics of a batch, or of a part of one that fits into memory."""

    rows: list[int]
    statistics: RaggedStatistics


class PairRunner:
    """Runs both models over the texts of one extraction."""

    def __init__(
        self,
        pair: Pair,
        encoded: Sequence[EncodedText],
        k: int,
        clock: ExtractionClock,
        gradients: GradientReader | None = None,
    ) -> None:
        """Prepare to run texts.

        Args:
            pair: The two models.
            encoded: All texts of the extraction.
            k: Top and bottom tokens kept per position.
            clock: Collects where the time went.
            gradients: Reads gradients of the same texts in the same passes.
        """
        self._pair = pair
        self._encoded = encoded
        self._k = k
        self._clock = clock
        self._gradients = gradients
        self._halving = Halving(encoded)

    def side_by_side(self, batches: Sequence[list[int]]) -> Iterator[BatchStatistics]:
        """Run both models on each batch."""
        return self._halving.run_all(batches, self._statistics)

    def sequential(self, batches: Sequence[list[int]], scratch: Path | None) -> Iterator[BatchStatistics]:
        """Run the target on as many batches as `STATES_BYTES` allows, then the reference on the same; repeat.

        Args:
            batches: Rows of each batch.
            scratch: Folder for the hidden states.
        """
        waiting = list(batches)
        while waiting:
            with KeptStates(scratch) as kept:
                n_run = 0
                while n_run < len(waiting) and kept.n_bytes < STATES_BYTES:
                    for rows, states in self._halving.run(waiting[n_run], self._target_states):
                        kept.write(rows, [self._encoded[i].n_scored for i in rows], states)
                    n_run += 1
                for rows in waiting[:n_run]:
                    yield from self._halving.run(rows, lambda part, kept=kept: self._statistics(part, kept))  # type: ignore[misc]  # mypy types no defaults
            waiting = waiting[n_run:]

    def _target_states(self, rows: list[int]) -> tuple[list[int], Tensor]:
        started = time.perf_counter()
        states = scored_states(self._pair, self._pair.target_runner, [self._encoded[i] for i in rows])
        self._clock.forward.seconds += time.perf_counter() - started
        return rows, states

    def _statistics(self, rows: list[int], kept: KeptStates | None = None) -> BatchStatistics:
        texts = [self._encoded[i] for i in rows]
        parts: list[TokenStatistics] = []
        states = self._with_gradients(rows) if kept is None else (kept.read(rows), None)
        for logits in forward_pair(self._pair, texts, self._clock.forward, states=states):
            started = time.perf_counter()
            parts.append(token_statistics(logits.target, logits.reference, logits.truth, self._k))
            self._clock.feature_seconds += time.perf_counter() - started
            del logits  # before the next are made
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([text.n_scored for text in texts])])
        statistics = RaggedStatistics(
            tokens=TokenStatistics.concatenate(parts), offsets=offsets, vocab_size=self._pair.vocab_size
        )
        return BatchStatistics(rows=rows, statistics=statistics)

    def _with_gradients(self, rows: list[int]) -> KnownStates:
        """Read the gradients of a batch if they are wanted, and return the hidden states that this gave."""
        if self._gradients is None:
            return None, None
        started = time.perf_counter() - self._gradients.seconds
        states = self._gradients.run_pair(rows)
        self._clock.forward.seconds += time.perf_counter() - self._gradients.seconds - started
        return states
