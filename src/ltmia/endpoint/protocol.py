"""The two forms in which OpenAI-compatible servers give log-probabilities of a prompt's tokens.

A prompt is sent as token ids, so that the server cannot read a text as other tokens than the tokenizer given. Only a
server that takes no ids is sent characters; then its tokens are compared with the tokenizer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, Field, ValidationError

from ltmia.data.prompt_logprobs import prompt_statistics
from ltmia.data.recordings import IMPOSSIBLE, SLACK
from ltmia.endpoint.sent_texts import SentTexts
from ltmia.errors import DataError
from ltmia.records import ModelStatistics

LEAST_IN_ALL, MOST_IN_ALL = 0.98, 1.01
"""Smallest sum that the probabilities of the whole vocabulary may have, and largest sum of any; servers round."""
MOST_TEXTS = 0.99
"""Smallest share of the vocabulary's texts in an answer that was not cut; servers write a few texts otherwise."""
OTHER_TOKENS_MADE = "tokens where the tokenizer makes"
"""Words of the error about a text that the server tokenised otherwise."""
SAME_NUMBER = 0.01
"""Nats by which two statements of one log-probability differ at most; servers round."""
SHIFTED = "one of the two lists is shifted, or belongs to other tokens"
"""Words of the error about numbers of a token that do not fit its text."""
OVER_ONE = "these are no log-probabilities of the model: the probabilities add up to over 1"


class _PromptToken(BaseModel):
    logprob: float | None
    rank: int | None = None
    decoded_token: str | None = None


class _EchoedTokens(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    prompt_logprobs: list[dict[int, _PromptToken] | None] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _EchoedTokens | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class Completion(BaseModel):
    """The parts of a server's answer that are read."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The numbers that a server gives for one prompt."""

    statistics: ModelStatistics
    """Of every token from `Form.first` on."""
    tokens: tuple[str | None, ...]
    """The server's own text of each of those tokens; None where it gives none."""
    following: Float32[np.ndarray, " pred"] | None = None
    """Log-probability that is given, in place of each of those tokens, to the next one; NaN where it is not given.
    None if the form does not tell."""


class Form(Protocol):
    """One form of request for log-probabilities."""

    @property
    def name(self) -> str:
        """Name of the form, for messages and provenance."""
        ...

    @property
    def first(self) -> int:
        """Index of the first id of a prompt that the server gives numbers of."""
        ...

    @property
    def sent(self) -> SentTexts | None:
        """How ids are sent as characters; None if they are sent as they are."""
        ...

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the request for a prompt, without the model's name."""
        ...

    def read(self, name: str, ids: Sequence[int], completion: Completion) -> Answer:
        """Read the answer to a prompt.

        Raises:
            DataError: If it is not about these tokens, or lacks one of their numbers.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """vLLM's form: `prompt_logprobs`, with the rank of each token."""

    n_top: int
    """Number of most likely tokens asked for at each position."""
    name: str = "prompt_logprobs"
    first: int = 1
    sent: None = None

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the request for a prompt, without the model's name."""
        asked = {"prompt_logprobs": self.n_top, "return_token_ids": True}
        return {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, **asked}

    def read(self, name: str, ids: Sequence[int], completion: Completion) -> Answer:
        """Read the answer to a prompt; see `Form`."""
        choice = completion.choices[0]
        entries = choice.prompt_logprobs
        if entries is None:
            raise DataError(f"{name!r}: the answer has no prompt_logprobs")
        _check_count(name, ids, len(entries), completion)
        _check_first(name, entries[0])
        if choice.prompt_token_ids is not None and choice.prompt_token_ids != list(ids):
            raise DataError(f"{name!r}: the server reports other token ids (prompt_token_ids) than it was sent")
        found = prompt_statistics(name, ids, entries, n_top=self.n_top)
        said = ((entry or {}).get(token) for token, entry in zip(ids[1:], entries[1:], strict=True))
        tokens = tuple(None if token is None else token.decoded_token for token in said)
        return Answer(statistics=_complete(name, found), tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoedLogprobs:
    """The older form of OpenAI: `echo` with `logprobs`. It gives no ranks, so all tokens are asked for and counted."""

    vocab_size: int
    """Number of tokens asked for at each position: all."""
    n_top: int
    """How many of the most likely ones are kept."""
    sent: SentTexts | None = None
    """How ids are sent as characters; None if the server takes ids."""
    unshared: frozenset[str] = frozenset()
    """Texts of one token alone. Tokens with the same text share an entry, which may be that of another one."""

    @property
    def name(self) -> str:
        """Name of the form."""
        return "echo" if self.sent is None else "echo of texts"

    @property
    def first(self) -> int:
        """Index of the first id with numbers: the answer leaves out BOS, and says nothing of the first id it has."""
        return 1 + self._n_left_out

    @property
    def _n_left_out(self) -> int:
        return 0 if self.sent is None else self.sent.n_before

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the request for a prompt, without the model's name."""
        prompt = list(ids) if self.sent is None else self.sent.characters(ids)
        # One token is generated, because some servers take 0 to mean no limit; it is cut off again.
        return {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": self.vocab_size}

    def read(self, name: str, ids: Sequence[int], completion: Completion) -> Answer:
        """Read the answer to a prompt; see `Form`."""
        said = completion.choices[0].logprobs
        if said is None or said.top_logprobs is None:
            raise DataError(f"{name!r}: the answer has neither prompt_logprobs nor logprobs of an echoed prompt")
        lengths = {len(said.tokens), len(said.token_logprobs), len(said.top_logprobs)}
        if len(lengths) > 1:
            raise DataError(f"{name!r}: tokens, token_logprobs and top_logprobs have different lengths")
        n_said = len(ids) - self._n_left_out
        self._check_tokens(name, ids, said.tokens, completion)
        _check_first(name, said.token_logprobs[0])
        n_given, given = n_said - 1, slice(1, n_said)
        found = ModelStatistics(
            logp=np.full(n_given, np.nan, np.float32),
            rank=np.zeros(n_given, np.int32),
            top_logp=np.full((n_given, self.n_top), np.nan, np.float32),
        )
        following, own = (np.full(n_given, np.nan, np.float32) for _ in range(2))
        pairs = zip(said.token_logprobs[given], said.top_logprobs[given], strict=True)
        for i, (logp, top) in enumerate(pairs):
            if logp is not None and top:
                values = self._all_values(f"{name!r}, token {self.first + i}", logp, top)
                found.logp[i] = logp
                found.rank[i] = 1 + int((values > logp).sum())
                found.top_logp[i] = np.sort(values)[: -self.n_top - 1 : -1]
                if said.tokens[given][i] in self.unshared:
                    own[i] = top.get(said.tokens[given][i], np.nan)
                if i + 1 < n_given:
                    following[i] = top.get(said.tokens[given][i + 1], np.nan)
        _check_own(name, found.logp, own)
        return Answer(statistics=_complete(name, found), tokens=tuple(said.tokens[given]), following=following)

    def _check_tokens(self, name: str, ids: Sequence[int], tokens: Sequence[str], completion: Completion) -> None:
        """Refuse an answer about more, fewer or other tokens than these."""
        if self.sent is None:
            return _check_count(name, ids, min(len(tokens), len(ids)), completion)
        n_before = self.sent.n_before
        _check_tokens_made(name, ids, min(len(tokens) + n_before, len(ids)), completion)
        # Many tokenizers put a space before a text. It changes this token alone, and all numbers after it.
        if not self.sent.is_text_of(ids[n_before], tokens[0]):
            first = tokens[0][:40]
            raise DataError(f"{name!r}: the server makes other {OTHER_TOKENS_MADE} them: its first one is {first!r}")
        return None

    def _all_values(self, place: str, logp: float, top: Mapping[str, float]) -> np.ndarray:
        """Return the log-probabilities of all tokens.

        Tokens of the same text share an entry, so a few may be missing; but no likely ones, or the ranks and the most
        likely tokens would be others. If it is known that every text has its entry, the missing ones count as one
        token that has the rest of the probability: mostly it is the end of a text.
        """
        values = np.fromiter(top.values(), np.float64, len(top))
        in_all = float(np.exp(np.minimum(values, 1.0)).sum())
        if self.sent is not None and len(values) >= MOST_TEXTS * self.sent.n_texts and in_all < 1:
            return np.append(values, np.log1p(-in_all))
        is_cut = len(values) < self.vocab_size / 2 and values.min() >= logp
        if len(values) < self.n_top or in_all < LEAST_IN_ALL or is_cut:
            raise DataError(
                f"{place}: only the {len(values)} most likely tokens are given, with probabilities that add up to "
                f"{in_all:.2g}; the rank of the true one needs all {self.vocab_size}"
            )
        if in_all > MOST_IN_ALL:
            raise DataError(f"{place}: {OVER_ONE}")
        return values


def read_completion(content: bytes) -> Completion:
    """Read the body of an answer.

    Raises:
        DataError: If it is not that of OpenAI's completions.
    """
    try:
        return Completion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"the answer is not one of /completions ({key}: {first['msg']})") from None


def _check_count(name: str, ids: Sequence[int], n_said: int, completion: Completion) -> None:
    """Refuse an answer that is about more or fewer tokens than were sent."""
    counted = None if completion.usage is None else completion.usage.prompt_tokens
    for n in (n_said, counted):
        if n is not None and n != len(ids):
            raise DataError(
                f"{name!r}: {len(ids)} tokens were sent, and the answer is about {n}; the server cut the text at its "
                "context length, or added tokens"
            )


def _check_tokens_made(name: str, ids: Sequence[int], n_said: int, completion: Completion) -> None:
    """Refuse an answer about a text that the server made more or fewer tokens of than the tokenizer."""
    counted = None if completion.usage is None else completion.usage.prompt_tokens
    for n in (n_said, counted):
        if n is not None and n != len(ids):
            raise DataError(f"{name!r}: the server makes {n} {OTHER_TOKENS_MADE} {len(ids)}")


def _check_first(name: str, said: object) -> None:
    """Refuse numbers of the first token: nothing comes before it, so a model says nothing of it.

    Raises:
        DataError: If there are some.
    """
    if said:
        raise DataError(
            f"{name!r}: the answer has a log-probability of the first token, which nothing comes before; the server "
            "put a token before the text, or shifted the numbers by one"
        )


def _check_own(name: str, logp: Float32[np.ndarray, " pred"], own: Float32[np.ndarray, " pred"]) -> None:
    """Refuse numbers of other tokens: the list of all tokens has other ones for these. NaN in `own`: unknown."""
    known = np.isfinite(own) & np.isfinite(logp)
    n_other = int((np.abs(own[known] - logp[known]) > SAME_NUMBER).sum())
    if n_other > known.sum() / 2:
        raise DataError(
            f"{name!r}: {n_other} of {known.sum()} tokens have another log-probability in top_logprobs than in "
            f"token_logprobs: {SHIFTED}"
        )


def _complete(name: str, found: ModelStatistics) -> ModelStatistics:
    """Return the statistics if they are log-probabilities, and none is missing. Minus infinity becomes a number.

    Raises:
        DataError: If not.
    """
    for values in (found.logp, found.top_logp):
        np.maximum(values, IMPOSSIBLE, out=values)
    if n_missing := int((~found.known).sum()):
        first = int(np.argmin(found.known)) + 1
        raise DataError(
            f"{name!r}: no log-probability or rank for {n_missing} of {len(found)} tokens, first for token {first}, "
            "as if a cache had answered"
        )
    if len(found) and (
        max(found.logp.max(), found.top_logp.max()) > SLACK
        or float(np.exp(found.top_logp.astype(np.float64)).sum(axis=1).max()) > MOST_IN_ALL
    ):
        raise DataError(f"{name!r}: {OVER_ONE}")
    return found
