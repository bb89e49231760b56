"""Ranks secrets among alternatives of the same form, by both models."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from ltmia.extraction.alternatives import alternatives_to
from ltmia.extraction.exposure import Tried, rank
from ltmia.models.endings import ending_logp
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.tokens import encode_texts
from ltmia.progress import Report, silent
from ltmia.records import shared_beginning
from ltmia.scoring.extraction import usable_length
from ltmia.scoring.kept_lines import Model
from ltmia.scoring.kept_ranks import KeptRanks

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

    place: int = 0
    """Number of the place where it was ranked, from 0; the first one if it was not ranked."""
    target: RankedBy | None = None
    reference: RankedBy | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankConfig:
    """How secrets are ranked."""

    n_alternatives: int
    """Most alternatives to each."""
    max_length: int
    """Tokens read of a text."""
    seed: int
    """Seed of the alternatives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A secret and its alternatives as token ids."""

    place: int
    beginning: Int64[np.ndarray, " _"]
    """What all values begin with."""
    joined: Int32[np.ndarray, " _"]
    """The endings one after the other, the secret's first. There are thousands of them for each secret."""
    lengths: Int32[np.ndarray, " endings"]
    n_before: int
    """Tokens of the secret's ending that lie before it. More than 0 if an alternative merges with the text before."""
    are_all: bool
    bits: float
    """See `Alternatives`."""

    @property
    def endings(self) -> list[Int64[np.ndarray, " _"]]:
        """The endings, one by one."""
        return np.split(self.joined.astype(np.int64), np.cumsum(self.lengths)[:-1])

    @property
    def content(self) -> bytes:
        """Everything that a model is given."""
        sizes = np.array([len(self.beginning), self.n_before, len(self.lengths)], np.int64)
        return b"".join(part.tobytes() for part in (sizes, self.beginning, self.lengths, self.joined))


def rank_secrets(
    pair: Pair,
    secrets: Sequence[Sequence[Secret]],
    config: RankConfig,
    *,
    kept: KeptRanks | None = None,
    report: Report = silent,
) -> list[RankedSecret]:
    """Rank each secret among alternatives of the same form, at the first place where that is possible.

    A value is ranked by the probability of all its tokens after the text before the secret. The text and each value are
    tokenised together, since a tokenizer may merge characters across the border.

    Args:
        pair: Target and reference.
        secrets: The places of each value, at least one.
        config: Settings.
        kept: Where ranks are kept for the next run of the same work; None: they are not kept.
        report: Called with progress.
    """
    trials = []
    for number, places in enumerate(secrets):
        trials.append(_trial(pair, places, config, number))
        report("tokenising alternatives to secrets", number + 1, len(secrets))
    # One model after the other, because only one may be in memory.
    found: list[list[RankedBy | None]] = []
    models: tuple[tuple[Model, ModelRunner], ...] = (
        ("target", pair.target_runner), ("reference", pair.reference_runner),
    )  # fmt: skip
    for turn, (model, runner) in enumerate(models):
        ranked = []
        for number, trial in enumerate(trials):
            ranked.append(None if isinstance(trial, str) else _kept_or_ranked(pair, model, runner, trial, kept))
            report("ranking secrets", turn * len(trials) + number + 1, 2 * len(trials))
        found.append(ranked)
    return [_outcome(*each) for each in zip(trials, *found, strict=True)]


def _outcome(trial: "_Trial | str", target: RankedBy | None, reference: RankedBy | None) -> RankedSecret:
    if isinstance(trial, str):
        return RankedSecret(reason=trial)
    if target is None or reference is None:
        return RankedSecret(place=trial.place, reason="a model gives NaN")
    return RankedSecret(place=trial.place, target=target, reference=reference)


def _trial(pair: Pair, places: Sequence[Secret], config: RankConfig, number: int) -> "_Trial | str":
    """Tokenise a secret and its alternatives at the first place that allows it, or say why the first one does not."""
    reasons = []
    for place, secret in enumerate(places):
        found = _trial_at(pair, place, secret, config, np.random.default_rng([config.seed, number]))
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return reasons[0]


def _trial_at(pair: Pair, place: int, secret: Secret, config: RankConfig, rng: np.random.Generator) -> "_Trial | str":
    """Tokenise a secret and its alternatives at one place, or say why it cannot be ranked there."""
    before, value = secret.text[: secret.start], secret.text[secret.start : secret.end]
    most = usable_length(pair, config.max_length)
    is_read = len(_ids(pair, [before], most + 1)[0]) < most
    tail = _tail(pair, secret, most) if is_read else None
    if tail is None:  # before alternatives are drawn: a value may be as long as a book
        return f"it lies behind the first {most} tokens, which are read"
    alternatives = alternatives_to(value, config.n_alternatives, rng)
    if not alternatives.values:
        return "it has no digit and no letter that could be another"
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
        place=place,
        beginning=np.array(rows[0][:n_shared], np.int64),
        joined=np.array([id_ for row in rows for id_ in row[n_shared:]], np.int32),
        lengths=np.array([len(row) - n_shared for row in rows], np.int32),
        n_before=max(shared_beginning(_ids(pair, [before], roomy)[0], rows[0]) - n_shared, 0),
        are_all=alternatives.are_all,
        bits=alternatives.bits,
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


def _kept_or_ranked(
    pair: Pair, model: Model, runner: ModelRunner, trial: _Trial, kept: KeptRanks | None
) -> RankedBy | None:
    """Return what a model says of a secret; None if it gives NaN."""
    if kept is None:
        return _ranked(pair, runner, trial)
    key = kept.key(model, trial.content)
    if (known := kept.find(key)) is not None:
        n = len(trial.lengths) - 1
        tried = Tried(n=n, n_better=known.n_better, are_all=trial.are_all, bits=trial.bits)
        return RankedBy(logp=known.logp, tried=tried)
    started = time.perf_counter()
    found = _ranked(pair, runner, trial)
    if found is not None and math.isfinite(found.logp):
        seconds = time.perf_counter() - started
        kept.keep(key, model, seconds, logp=found.logp, n_better=found.tried.n_better)
    return found


def _ranked(pair: Pair, runner: ModelRunner, trial: _Trial) -> RankedBy | None:
    endings = trial.endings
    logp = ending_logp(pair, runner, trial.beginning, endings)
    if np.isnan(logp).any():
        return None
    own = float(logp[0])
    if trial.n_before:  # the tokens between are not the secret's
        true, n = endings[0], trial.n_before
        own = float(ending_logp(pair, runner, np.concatenate([trial.beginning, true[:n]]), [true[n:]])[0])
    return RankedBy(logp=own, tried=rank(float(logp[0]), logp[1:], are_all=trial.are_all, bits=trial.bits))
