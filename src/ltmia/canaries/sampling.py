"""Samples texts from a language model. The same seed gives the same texts, whatever the size of the batches."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from ltmia.data.duplicates import normalise_text
from ltmia.errors import ConfigError, ModelError
from ltmia.models.batching import Halving, most_tokens
from ltmia.models.continuation import Sampling, continue_beginnings
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.progress import Report, silent
from ltmia.records import without_surrogates

AT_ONCE = 64
"""Most texts sampled in one batch."""
TRIES = 10
"""Texts sampled for each one wanted, at most; repeats and short ones are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """How texts are sampled."""

    n_texts: int
    n_tokens: int
    """Tokens drawn for each text; a text keeps at least half as many."""
    temperature: float = 1.0
    """The logits are divided by it."""
    beginning: str = ""
    """Stands before each text, and is no part of it. Without it, a text begins after the token that begins texts."""
    seed: int = 0


def sample_texts(
    pair: Pair, config: SampleConfig, *, refused: frozenset[str] = frozenset(), report: Report = silent
) -> list[str]:
    """Sample different texts from the target of a pair, each in one line.

    Special tokens are not drawn. White space becomes single spaces, and characters that cannot be printed are removed.

    Args:
        pair: Its target writes the texts.
        config: How.
        refused: Texts that are left out, in the form of `normalise_text`.
        report: Called with progress.

    Raises:
        ConfigError: If the model cannot begin a text, is too short for one, or gives too few different texts.
        ModelError: If the model cannot write text.
    """
    given = _beginning(pair, config.beginning)
    n_texts, n_tokens = config.n_texts, config.n_tokens
    longest = len(given) + n_tokens
    if pair.max_positions is not None and longest > pair.max_positions:
        raise ConfigError(f"{longest} tokens: the model reads at most {pair.max_positions}; sample shorter texts")
    sampling = Sampling(temperature=config.temperature, never=_special_ids(pair))
    size = min(max(most_tokens(pair.device) // longest, 1), AT_ONCE)
    halving = Halving([EncodedText(ids=np.zeros(longest, np.int64))] * size)

    def work(rows: list[int], first: int) -> list[str]:
        numbers = np.stack([np.random.default_rng([config.seed, first + row]).random(n_tokens) for row in rows])
        beginnings = np.tile(given, (len(rows), 1))
        written = continue_beginnings(pair.target_runner, beginnings, numbers, pair.vocab_size, sampling)
        return [one_line(str(pair.tokenizer.decode(ids.tolist(), skip_special_tokens=True))) for ids in written]

    found: dict[str, str] = {}
    for first in range(0, TRIES * n_texts, size):
        for texts in halving.run(list(range(size)), partial(work, first=first)):
            for text in texts:
                key = normalise_text(text)
                if key not in refused and _n_tokens(pair, text) >= n_tokens // 2:
                    found.setdefault(key, text)
        report("sampling texts", min(len(found), n_texts), n_texts)
        if len(found) >= n_texts:
            return list(found.values())[:n_texts]
    raise ConfigError(
        f"{pair.target_runner.name}: gave only {len(found)} different texts of {n_tokens // 2} tokens or more in "
        f"{TRIES * n_texts} draws, and {n_texts} are wanted: name another model, or raise the temperature"
    )


def one_line(text: str) -> str:
    """Return a text without line breaks, repeated white space and characters that cannot be printed."""
    shown = "".join(sign for sign in without_surrogates(text) if sign.isprintable() or sign.isspace())
    return " ".join(shown.replace("\ufffd", "").split())  # U+FFFD stands for bytes that are no character


def _beginning(pair: Pair, words: str) -> Int64[np.ndarray, " seq"]:
    tokenizer = pair.tokenizer
    if words:
        ids = list(tokenizer(words)["input_ids"])
        while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:  # it would end the text
            ids.pop()
        return np.array(ids, np.int64)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ConfigError(
            "the tokenizer has no token that begins or ends a text: give `beginning`, words to begin with"
        )
    if first >= pair.vocab_size:
        raise ModelError(f"{pair.target_runner.name}: has no embedding of the token {first} that begins texts")
    return np.array([first], np.int64)


def _special_ids(pair: Pair) -> tuple[int, ...]:
    return tuple(sorted(number for number in pair.tokenizer.all_special_ids if number < pair.vocab_size))


def _n_tokens(pair: Pair, text: str) -> int:
    return len(pair.tokenizer(text, add_special_tokens=False)["input_ids"])
