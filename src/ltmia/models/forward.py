"""Runs both models over batches of texts and yields their logits, one chunk of positions at a time.

The logits of a whole batch are never in memory, and none are computed for padding. This module does not know what is
computed from the logits.
"""

import itertools
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from ltmia.models.allocator import trim_heap
from ltmia.models.batching import BatchSize, length_batches, most_tokens, pass_stops, pick_batch_size
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.tokens import EncodedText

CHUNK_BYTES = 32 * 2**20
"""Largest number of bytes of logits of one model in memory at a time; more is not faster."""


KnownStates = tuple[Shaped[Tensor, "pred hidden"] | None, Shaped[Tensor, "pred hidden"] | None]
"""Hidden states of target and reference at the scored positions of a batch; None: that model is yet to be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPair:
    """Both models' logits for a run of scored positions of one batch, with its texts concatenated.

    They are valid for one turn of the loop; the next turn overwrites them.
    """

    target: Float32[Tensor, "pred vocab"]
    reference: Float32[Tensor, "pred vocab"]
    truth: Int64[Tensor, " pred"]
    """Ids of the true next tokens."""


@dataclass(slots=True)
class ForwardClock:
    """Seconds spent inside the two models."""

    seconds: float = 0.0


def forward_pair(
    pair: Pair,
    texts: Sequence[EncodedText],
    clock: ForwardClock | None = None,
    *,
    states: KnownStates = (None, None),
) -> Iterator[LogitsPair]:
    """Run both models on one batch and yield their logits over the shared ids, chunk by chunk.

    Args:
        pair: The two models.
        texts: Scorable texts of the batch.
        clock: Collects the seconds spent in the models.
        states: Hidden states of target and reference by `scored_states`, if they are known.
    """
    clock = clock or ForwardClock()
    truth = _true_ids(texts)
    started = time.perf_counter()
    runners = pair.target_runner, pair.reference_runner
    hidden = [
        scored_states(pair, runner, texts) if known is None else known.to(pair.device)
        for runner, known in zip(runners, states, strict=True)
    ]
    heads = [runner.float32_head() for runner in runners]
    clock.seconds += time.perf_counter() - started
    for part in _chunks(len(truth), pair.vocab_size):
        started = time.perf_counter()
        target, reference = (
            head(states[part])[:, : pair.vocab_size] for head, states in zip(heads, hidden, strict=True)
        )
        clock.seconds += time.perf_counter() - started
        yield LogitsPair(target=target, reference=reference, truth=truth[part])
        # Otherwise they would be in memory together with those of the next turn.
        del target, reference


def forward_target(pair: Pair, texts: Sequence[EncodedText]) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the target alone on one batch, and yield its logits over all its ids, chunk by chunk.

    Args:
        pair: Pair whose target is run; its reference is not.
        texts: Scorable texts of the batch.

    Yields:
        Logits, (pred, vocab) float32, and the ids of the true next tokens, (pred,).
    """
    runner, truth = pair.target_runner, _true_ids(texts)
    states, head = scored_states(pair, runner, texts), runner.float32_head()
    for part in _chunks(len(truth), runner.vocab_size):
        yield head(states[part]), truth[part]


def positions_at_once(vocab_size: int) -> int:
    """Return how many positions' logits `CHUNK_BYTES` holds."""
    return max(CHUNK_BYTES // (4 * vocab_size), 1)


def _chunks(n_positions: int, vocab_size: int) -> Iterator[slice]:
    step = positions_at_once(vocab_size)
    return (slice(start, start + step) for start in range(0, n_positions, step))


def _true_ids(texts: Sequence[EncodedText]) -> Int64[Tensor, " pred"]:
    return torch.from_numpy(np.concatenate([text.scored_ids for text in texts]))


def batches_to_run(
    pair: Pair, encoded: Sequence[EncodedText], batch_size: BatchSize, done: Container[int] = ()
) -> list[list[int]]:
    """Group the scorable texts that are not done into batches, longest texts first.

    Batches are cut from all texts, done or not, so that a resumed run pads like an undisturbed one.

    Args:
        pair: Where the texts are run.
        encoded: All texts.
        batch_size: Texts of the longest length per batch.
        done: Rows that are left out.
    """
    longest = max((len(text.ids) for text in encoded if text.n_scored), default=1)
    batches = length_batches(encoded, fitting_batch_size(pair, batch_size, longest))
    left = ([row for row in rows if row not in done] for rows in batches)
    return [rows for rows in left if rows]


def fitting_batch_size(pair: Pair, batch_size: BatchSize, length: int) -> int:
    """Return how many texts of a length to run at once; see `pick_batch_size`."""
    return pick_batch_size(
        batch_size, length, pair.device, lambda text: scored_states(pair, pair.target_runner, [text])
    )


def scored_states(pair: Pair, runner: ModelRunner, texts: Sequence[EncodedText]) -> Shaped[Tensor, "pred hidden"]:
    """Return one model's last hidden states at the scored positions of a batch, with its texts concatenated."""
    states = torch.cat([_states(pair, runner, texts[part]) for part in passes(pair, texts)])
    trim_heap()
    return states


def passes(pair: Pair, texts: Sequence[EncodedText]) -> Iterator[slice]:
    """Split a batch into the runs of texts that go through a model at once."""
    stops = pass_stops([len(text.ids) for text in texts], most_tokens(pair.device))
    return (slice(start, stop) for start, stop in itertools.pairwise([0, *stops]))


def _states(pair: Pair, runner: ModelRunner, texts: Sequence[EncodedText]) -> Shaped[Tensor, "pred hidden"]:
    ids, mask = pad_ids([text.ids for text in texts], pad_id_of(pair))
    scored = scored_positions(mask, [text.start for text in texts])
    return runner.hidden_states(ids.to(pair.device), mask.to(pair.device))[:, :-1][scored.to(pair.device)]


def pad_id_of(pair: Pair) -> int:
    """Return the id that texts are padded with; padding is masked and last, so any id that both models know will do."""
    pad_id = pair.tokenizer.pad_token_id
    return pad_id if pad_id is not None and pad_id < pair.vocab_size else 0


def scored_positions(mask: Int64[Tensor, "batch seq"], starts: Sequence[int]) -> Bool[Tensor, "batch seq-1"]:
    """Say which positions predict a token that is scored: not padding, and not before the text's start."""
    scored = mask[:, 1:].bool()
    for row, start in zip(scored, starts, strict=True):
        row[: start - 1] = False
    return scored


def pad_ids(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad ids on the right; padding comes after every real token, so causal models never see it."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    return ids, mask
