"""Converts `prompt_logprobs` of vLLM, as dicts or as its own objects, into lines of a recording.

Does not import vLLM.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltmia.data.recordings import RecordedText
from ltmia.errors import DataError
from ltmia.records import ModelStatistics


def from_prompt_logprobs(
    name: str,
    token_ids: Sequence[int],
    prompt_logprobs: Sequence[Mapping[Any, Any] | None],
    *,
    n_top: int,
    text: str | None = None,
    start: int = 1,
    truncated: bool | None = None,
) -> RecordedText:
    """Make a line of a recording from one output of vLLM, or from its server's JSON.

    Args:
        name: Id of the text.
        token_ids: `prompt_token_ids`.
        prompt_logprobs: One entry per token; the first is None. An entry maps token ids (in JSON as text) to objects
            or dicts with `logprob` and `rank`: those of the most likely tokens, and that of the true one.
        n_top: `n_top` of the header: at most what `SamplingParams(prompt_logprobs=...)` asked for.
        text: The text; its hash shows later if another text has the same id.
        start: Index of the first token to score, if a prompt of several tokens comes before it.
        truncated: Whether the text continues after these tokens; None if it is not known.

    Raises:
        DataError: If an entry lacks the true token, or has fewer than `n_top` of the most likely ones.
    """
    found = prompt_statistics(name, token_ids, prompt_logprobs, n_top=n_top, start=start)
    return RecordedText.of(name, np.asarray(token_ids), found, text, start=start, truncated=truncated)


def prompt_statistics(
    name: str,
    token_ids: Sequence[int],
    prompt_logprobs: Sequence[Mapping[Any, Any] | None],
    *,
    n_top: int,
    start: int = 1,
) -> ModelStatistics:
    """Read the numbers of each token from `start` on; see `from_prompt_logprobs`. Empty entries give missing numbers.

    Raises:
        DataError: If an entry lacks the true token, or has fewer than `n_top` of the most likely ones.
    """
    if len(prompt_logprobs) != len(token_ids):
        raise DataError(
            f"{name!r}: {len(token_ids)} token ids, but {len(prompt_logprobs)} entries of prompt_logprobs; expected "
            "one for each"
        )
    n_scored = max(len(token_ids) - start, 0)
    found = ModelStatistics(
        logp=np.full(n_scored, np.nan, np.float32),
        rank=np.zeros(n_scored, np.int32),
        top_logp=np.full((n_scored, n_top), np.nan, np.float32),
    )
    for i, (token, entry) in enumerate(zip(token_ids[start:], prompt_logprobs[start:], strict=True)):
        if entry:
            place = f"{name!r}, token {start + i}"
            found.logp[i], found.rank[i], found.top_logp[i] = _position(place, token, entry, n_top)
    return found


def _position(place: str, token: int, entry: Mapping[Any, Any], n_top: int) -> tuple[float, int, list[float]]:
    """Return log-probability and rank of the true token, and the log-probabilities of the most likely ones."""
    said = {int(key): _said(value) for key, value in entry.items()}
    if token not in said:
        raise DataError(
            f"{place}: prompt_logprobs lack the true token; expected it in addition to the most likely ones"
        )
    likely = sorted((-logp, rank) for logp, rank in said.values() if not math.isnan(logp))[:n_top]
    # A true token that is not among the most likely ones comes after them, and may be much less likely.
    if len(likely) < n_top or any(rank > n_top for _, rank in likely):
        raise DataError(f"{place}: fewer than the {n_top} most likely tokens; ask for prompt_logprobs={n_top} or more")
    return *said[token], [-logp for logp, _ in likely]


def _said(value: Any) -> tuple[float, int]:
    logp, rank = (value[key] if isinstance(value, Mapping) else getattr(value, key) for key in ("logprob", "rank"))
    return (math.nan if logp is None else float(logp)), rank or 0
