"""Log-probabilities of many endings after one beginning, which is read once if the model allows it."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ltmia.models.batching import Halving, most_tokens
from ltmia.models.forward import pad_ids, positions_at_once
from ltmia.models.head import HALF
from ltmia.models.pair import Pair
from ltmia.models.runner import RUN_ERRORS, ModelRunner
from ltmia.models.tokens import EncodedText

ROWS_AT_ONCE = 4
"""Tokens of a pass of endings, with those of the beginning that each of them attends to, as a multiple of
`most_tokens`. The beginning costs memory but hardly any time."""
AGREEMENT = 1e-4
"""Largest difference between an ending's log-probability after a beginning that was read before, and if both are read
together, as a share of it."""
HALF_AGREEMENT = 3e-2
"""The same in half precision."""

Ids = Int64[np.ndarray, " _"]


@torch.inference_mode()
def ending_logp(
    pair: Pair, runner: ModelRunner, beginning: Ids, endings: Sequence[Ids]
) -> Float64[np.ndarray, " endings"]:
    """Return the log-probability of each ending after the beginning, in nats; NaN where the model gives NaN.

    Args:
        pair: Pair of models.
        runner: Runs one of the two.
        beginning: At least one token id, special tokens included.
        endings: Token ids; each ending has at least one.

    Raises:
        ModelError: If one ending alone does not fit into memory.
    """
    past = _agreeing(pair, runner, beginning, endings[0])
    fed = beginning[-1:] if past is not None else beginning
    read_before = len(beginning) - len(fed)
    rows = sorted(range(len(endings)), key=lambda i: -len(endings[i]))
    # Ids that are only attended to take memory too.
    inputs = [EncodedText(ids=np.concatenate([beginning, ending])) for ending in endings]
    size = max(ROWS_AT_ONCE * most_tokens(pair.device) // len(inputs[rows[0]].ids), 1)
    found = np.empty(len(endings))
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]

    def work(part: list[int]) -> tuple[list[int], list[float]]:
        return part, _logp(pair, runner, [inputs[i].ids[read_before:] for i in part], len(fed), past)

    for part, logp in Halving(inputs).run_all(batches, work):
        found[part] = logp
    return found


def _agreeing(pair: Pair, runner: ModelRunner, beginning: Ids, ending: Ids) -> Any:
    """Return the model's cache after the beginning without its last token; None if the model cannot go on from a cache.

    This is tested: two rows that go on from the cache must get the log-probability of a row that is read as a whole.
    """
    if len(beginning) < 2:
        return None
    whole, after = np.concatenate([beginning, ending]), np.concatenate([beginning[-1:], ending])
    [expected] = _logp(pair, runner, [whole], len(beginning), None)
    try:
        past = runner.remember(torch.from_numpy(beginning[:-1])[None].to(pair.device))
        found = [] if past is None else _logp(pair, runner, [after, after], 1, past)
    except RUN_ERRORS:  # no such memory, or one of another kind
        return None
    is_half = pair.dtype in HALF or pair.reference_dtype in HALF
    tolerance = (HALF_AGREEMENT if is_half else AGREEMENT) * max(abs(expected), 1.0)
    return past if found and all(abs(logp - expected) <= tolerance for logp in found) else None


def _logp(pair: Pair, runner: ModelRunner, rows: Sequence[Ids], n_given: int, past: Any) -> list[float]:
    """Sum the log-probabilities of each row's ids but the first `n_given`."""
    ids, mask = (part.to(pair.device) for part in pad_ids(rows, 0))
    scored = mask[:, 1:].bool()
    scored[:, : n_given - 1] = False
    if past is not None:
        past = deepcopy(past)  # a pass adds its tokens
        before = past.get_seq_length()
        past.batch_repeat_interleave(len(rows))
        mask = torch.cat([mask.new_ones(len(rows), before), mask], 1)
    states, truth = runner.hidden_states(ids, mask, past)[:, :-1][scored], ids[:, 1:][scored]
    head, step = runner.float32_head(), positions_at_once(pair.vocab_size)
    parts = [
        _of_truth(head(x)[:, : pair.vocab_size], y) for x, y in zip(states.split(step), truth.split(step), strict=True)
    ]
    return [float(part.sum()) for part in torch.cat(parts).split(scored.sum(1).tolist())]


def _of_truth(logits: Tensor, truth: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, truth[:, None])[:, 0].cpu().double()
