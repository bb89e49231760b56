"""Turns texts into token ids, one row per text."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedTokenizerBase

from ltmia.records import shared_beginning, without_surrogates

ENCODE_AT_ONCE = 1000
CHARACTERS_PER_TOKEN = 256
"""Characters per token at most: a text is cut at this many times `max_length` before it is tokenised. No tokens are
that long on average."""

Encoding = Literal["default", "published"]
LEAST_IDS: Mapping[Encoding, int] = {"default": 3, "published": 2}
"""Fewest ids of a scorable text: attacks need two predictions, the published features one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """Ids of one text, ready for the models; every id from `start` on is predicted and scored."""

    ids: Int64[np.ndarray, " seq"]
    start: int = 1
    """Index of the first scored id: 1, or the first one after the prompt."""
    reason: str | None = None
    """Why the text cannot be scored; None when it can."""
    truncated: bool | None = False
    """Whether the text continues after these ids. None: a recording does not say."""

    @property
    def n_scored(self) -> int:
        """Number of predicted positions."""
        return 0 if self.reason else len(self.ids) - self.start

    @property
    def scored_ids(self) -> Int64[np.ndarray, " pred"]:
        """The ids that are predicted and scored."""
        return self.ids[self.start :]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    vocab_size: int,
    encoding: Encoding = "default",
    starts: Sequence[int] | None = None,
) -> list[EncodedText]:
    """Tokenise texts, one result per text in the same order.

    Args:
        tokenizer: Tokenizer of both models.
        texts: Any strings; a lone surrogate is read as "?".
        starts: Index of each text's first scored character; see `Texts`. A token that spans it is scored.
        max_length: Largest number of ids per text, special tokens included.
        vocab_size: Number of ids that both models know; a text with a larger id is unscorable.
        encoding: "default": the special tokens that the tokenizer puts before a text, so that with a BOS token the
            first word is scored too, and none after it. "published": as LT-MIA does (arXiv 2604.03199),
            no special tokens, truncated to `max_length` - 1, EOS appended.

    Raises:
        ValueError: If `max_length` leaves nothing to score.
    """
    if max_length < 2:
        raise ValueError(f"max_length = {max_length}: at least 2 ids are needed to score one")
    encoded = []
    for part in tokenised_at_once(len(texts)):
        cleaned = [_clean(text, max_length) for text in texts[part]]
        rows = _token_ids(tokenizer, cleaned, encoding)
        lengths = prompt_lengths(tokenizer, cleaned, rows, None if starts is None else starts[part], encoding)
        encoded += [
            _finish(row, max(n_prompt, 1), tokenizer, max_length, vocab_size, encoding)
            for row, n_prompt in zip(rows, lengths, strict=True)
        ]
    return encoded


def tokenised_at_once(n_texts: int) -> Iterator[slice]:
    """Split texts into groups to tokenise at once: large enough to be fast, small enough for memory."""
    for start in range(0, n_texts, ENCODE_AT_ONCE):
        yield slice(start, start + ENCODE_AT_ONCE)


def hash_encoded(digest: Any, encoded: Iterable[EncodedText]) -> None:
    """Feed the encoded texts to a hash of `hashlib`."""
    for text in encoded:
        digest.update(json.dumps([text.ids.tolist(), text.start, text.reason, text.truncated]).encode())


def prompt_lengths(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    encoding: Encoding = "default",
) -> list[int]:
    """Return how many ids of each text belong to its prompt. A token that spans the end of the prompt does not.

    Args:
        tokenizer: Tokenizer that made the ids.
        texts: Any strings.
        rows: Token ids of the texts.
        starts: Index of the character after each prompt; None if there are no prompts.
        encoding: Encoding of the ids.
    """
    if starts is None:
        return [0] * len(rows)
    prompts = _token_ids(tokenizer, [text[:start] for text, start in zip(texts, starts, strict=True)], encoding)
    triples = zip(prompts, rows, starts, strict=True)
    return [shared_beginning(prompt, row) if start else 0 for prompt, row, start in triples]


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoding: Encoding) -> list[list[int]]:
    found = tokenizer(list(texts), add_special_tokens=encoding == "default", return_attention_mask=False, verbose=False)
    return [list(row) for row in found["input_ids"]]


def _clean(text: str, max_length: int) -> str:
    return without_surrogates(text[: max_length * CHARACTERS_PER_TOKEN])


def _finish(
    ids: list[int],
    start: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    vocab_size: int,
    encoding: Encoding,
) -> EncodedText:
    eos = tokenizer.eos_token_id
    if encoding == "published":
        n_read, ending = max_length - 1, [] if eos is None else [eos]
    else:
        n_read, ending = max_length, []
        if len(ids) > 1 and ids[-1] in (eos, tokenizer.sep_token_id):
            ids = ids[:-1]
    kept = ids[:n_read] + ending
    truncated = len(ids) > n_read
    array = np.array(kept, np.int64)
    if len(kept) < LEAST_IDS[encoding]:
        return EncodedText(ids=array, reason=f"{len(kept)} token(s): too few to score")
    if len(kept) - start < LEAST_IDS[encoding] - 1:
        whole = f", because at most {max_length} tokens of prompt and text are read" if truncated else ""
        reason = f"{max(len(kept) - start, 0)} token(s) after the prompt: too few to score{whole}"
        return EncodedText(ids=array, reason=reason, truncated=truncated)
    if array.max() >= vocab_size:
        return EncodedText(ids=array, reason="a token is unknown to one of the two models")
    return EncodedText(ids=array, start=start, truncated=truncated)
