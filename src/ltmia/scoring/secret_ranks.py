"""Ranks secrets among alternatives of the same form, by both models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ltmia.extraction.alternatives import Alternatives, alternatives_to
from ltmia.extraction.exposure import Tried, rank
from ltmia.models.endings import ending_logp
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.tokens import encode_texts
from ltmia.progress import Report, silent
from ltmia.records import shared_beginning
from ltmia.scoring.extraction import usable_length

LONGEST_TAIL = 16
"""Characters after a secret that may be needed for it to have the tokens that it has in its text."""
MOST_TOKENS_LONGER = 4
"""Tokens that an alternative has, at most, for each character of the secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value in its text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedBy:
    """Probability and rank of a secret under one model."""

    logp: float
    """Log-probability of the secret's tokens given the text before them, in nats."""
    tried: Tried


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedSecret:
    """Probability and rank of a secret under both models, or why it could not be ranked."""

    target: RankedBy | None = None
    reference: RankedBy | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A secret and its alternatives as token ids."""

    beginning: Int64[np.ndarray, " _"]
    """What all values begin with."""
    endings: list[Int64[np.ndarray, " _"]]
    """The secret's first."""
    n_before: int
    """Tokens of the secret's ending that lie before it. More than 0 if an alternative merges with the text before."""
    alternatives: Alternatives


def rank_secrets(
    pair: Pair,
    secrets: Sequence[Secret],
    *,
    n_alternatives: int,
    max_length: int,
    seed: int,
    report: Report = silent,
) -> list[RankedSecret]:
    """Rank each secret among alternatives of the same form.

    A value is ranked by the probability of all its tokens after the text before the secret. The text and each value are
    tokenised together, since a tokenizer may merge characters across the border.

    Args:
        pair: Target and reference.
        secrets: Values in their texts.
        n_alternatives: Largest number of alternatives to each.
        max_length: Tokens read of a text.
        seed: Seed of the alternatives.
        report: Called with progress.
    """
    trials = []
    for number, secret in enumerate(secrets):
        trials.append(_trial(pair, secret, n_alternatives, max_length, np.random.default_rng([seed, number])))
        report("tokenising alternatives to secrets", number + 1, len(secrets))
    # One model after the other, because only one may be in memory.
    found: list[list[RankedBy | None]] = []
    for turn, runner in enumerate((pair.target_runner, pair.reference_runner)):
        ranked = []
        for number, trial in enumerate(trials):
            ranked.append(None if isinstance(trial, str) else _ranked(pair, runner, trial))
            report("ranking secrets", turn * len(trials) + number + 1, 2 * len(trials))
        found.append(ranked)
    return [
        RankedSecret(reason=trial if isinstance(trial, str) else "a model gives NaN")
        if target is None or reference is None
        else RankedSecret(target=target, reference=reference)
        for trial, target, reference in zip(trials, *found, strict=True)
    ]


def _trial(
    pair: Pair, secret: Secret, n_alternatives: int, max_length: int, rng: np.random.Generator
) -> "_Trial | str":
    """Tokenise a secret and its alternatives, or say why it cannot be ranked."""
    before, value = secret.text[: secret.start], secret.text[secret.start : secret.end]
    most = usable_length(pair, max_length)
    if len(_ids(pair, [before], most + 1)[0]) >= most:
        return f"it lies behind the first {most} tokens, which are read"
    alternatives = alternatives_to(value, n_alternatives, rng)
    if not alternatives.values:
        return "it has no digit and no letter that could be another"
    tail = _tail(pair, secret, most)
    if tail is None:
        return f"it lies behind the first {most} tokens, which are read"
    roomy = most + MOST_TOKENS_LONGER * (len(value) + len(tail))
    rows = _ids(pair, [before + other + tail for other in (value, *alternatives.values)], roomy)
    n_shared = min(shared_beginning(rows[0], row) for row in rows[1:])
    if not n_shared:
        return "nothing stands before it"
    if min(map(len, rows)) == n_shared:
        return "the tokenizer does not tell it from its alternatives"
    if max(map(max, rows)) >= pair.vocab_size:
        return "a token is unknown to one of the two models"
    if pair.max_positions is not None and max(map(len, rows)) > pair.max_positions:
        return "an alternative is too long for the models"
    return _Trial(
        beginning=np.array(rows[0][:n_shared], np.int64),
        endings=[np.array(row[n_shared:], np.int64) for row in rows],
        n_before=max(shared_beginning(_ids(pair, [before], roomy)[0], rows[0]) - n_shared, 0),
        alternatives=alternatives,
    )


def _tail(pair: Pair, secret: Secret, most: int) -> str | None:
    """Return the shortest tail after a secret with which it has the tokens that it has in its text.

    None if the secret is not read as a whole. If no tail up to the longest will do, the tail is empty.
    """
    stops = range(secret.end, min(secret.end + LONGEST_TAIL, len(secret.text)) + 1)
    whole, *cut = _ids(pair, [secret.text, *(secret.text[:stop] for stop in stops)], most + 1)
    for stop, ids in zip(stops, cut, strict=True):
        if ids == whole[: len(ids)]:
            return secret.text[secret.end : stop] if len(ids) <= most else None
    return "" if len(cut[0]) <= most else None


def _ids(pair: Pair, texts: Sequence[str], max_length: int) -> list[list[int]]:
    found = encode_texts(pair.tokenizer, texts, max_length=max_length, vocab_size=pair.vocab_size)
    return [text.ids.tolist() for text in found]


def _ranked(pair: Pair, runner: ModelRunner, trial: _Trial) -> RankedBy | None:
    logp = ending_logp(pair, runner, trial.beginning, trial.endings)
    if np.isnan(logp).any():
        return None
    own = float(logp[0])
    if trial.n_before:  # the tokens between are not the secret's
        true, n = trial.endings[0], trial.n_before
        own = float(ending_logp(pair, runner, np.concatenate([trial.beginning, true[:n]]), [true[n:]])[0])
    tried = rank(float(logp[0]), logp[1:], are_all=trial.alternatives.are_all, bits=trial.alternatives.bits)
    return RankedBy(logp=own, tried=tried)
