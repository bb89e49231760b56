"""One forward pass of both models over batches of texts: their logits, a chunk of positions at a time, then gone.

Batches hold texts of similar length; full-batch logits never exist, and padding has none. Knows
nothing of what is computed from the logits.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ltmia.lm.pair import Pair
from ltmia.lm.tokens import EncodedText

CHUNK_BYTES = 32 * 2**20
"""Most memory the logits of one model may take at a time, whatever the vocabulary. Larger is no faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPair:
    """Both models' logits for a run of scored positions of one batch, texts end to end.

    They last for one turn of the loop: the next turn overwrites them.
    """

    target: Float32[Tensor, "pred vocab"]
    reference: Float32[Tensor, "pred vocab"]
    truth: Int64[Tensor, " pred"]
    """Ids that really followed."""


@dataclass(slots=True)
class ForwardClock:
    """Seconds spent inside the two models."""

    seconds: float = 0.0


def length_batches(encoded: Sequence[EncodedText], batch_size: int) -> list[list[int]]:
    """Group scorable texts of similar length: rows of each batch, longest texts first.

    Longest first: if memory runs out it does so at once. A batch holds as many tokens as
    `batch_size` texts of the longest length would, so short texts travel in larger batches.
    """
    rows = [i for i, text in enumerate(encoded) if text.n_scored]
    rows.sort(key=lambda i: (-len(encoded[i].ids), i))
    budget = batch_size * (len(encoded[rows[0]].ids) if rows else 0)
    batches: list[list[int]] = []
    while rows:
        size = max(budget // len(encoded[rows[0]].ids), 1)
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


def forward_pair(pair: Pair, texts: Sequence[EncodedText], clock: ForwardClock | None = None) -> Iterator[LogitsPair]:
    """Run both models on one batch and yield their logits over the shared ids, chunk by chunk.

    Args:
        pair: The two models.
        texts: Scorable texts of the batch.
        clock: Collects the seconds spent in the models.
    """
    clock = clock or ForwardClock()
    pad_id = pair.tokenizer.pad_token_id
    # A pad token added while fine-tuning is unknown to the base; masked and last, any id will do.
    known = pad_id is not None and pad_id < pair.vocab_size
    ids, mask = pad_ids([text.ids for text in texts], pad_id if known else 0)
    ids, mask = ids.to(pair.device), mask.to(pair.device)
    scored = mask[:, 1:].bool()
    truth = ids[:, 1:][scored].cpu()
    started = time.perf_counter()
    scorers = (pair.target_scorer, pair.reference_scorer)
    hidden = [scorer.hidden_states(ids, mask)[:, :-1][scored] for scorer in scorers]
    heads = [scorer.float32_head() for scorer in scorers]
    clock.seconds += time.perf_counter() - started
    step = max(CHUNK_BYTES // (4 * pair.vocab_size), 1)
    for start in range(0, len(truth), step):
        part = slice(start, start + step)
        started = time.perf_counter()
        target, reference = (
            head(states[part])[:, : pair.vocab_size] for head, states in zip(heads, hidden, strict=True)
        )
        clock.seconds += time.perf_counter() - started
        yield LogitsPair(target=target, reference=reference, truth=truth[part])


def pad_ids(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad ids on the right; padding comes after every real token, so causal models never see it."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    return ids, mask
