"""How likely a model writes the rest of a text, given its beginning.

Each text is split once into a prefix and a suffix. If a model is given the prefix and tokens are drawn from its own
distribution (temperature 1, all tokens), it writes exactly the suffix with probability p, the product of the
probabilities of the suffix's tokens. Within n draws the suffix comes out at least once with probability 1 - (1 - p)^n.
A text is called extractable within n draws if that is at least one half ((n, p)-discoverable extraction: Hayes et al.
2024, arXiv 2410.19482). All of it is computed from the log-probabilities of the audit's own pass; nothing is sampled.

Many services draw in other ways. With top-k, only the k most likely tokens can be drawn, and the chance of a token is
its probability divided by the sum of theirs. A temperature needs the whole distribution, which the pass does not keep,
but there is a bound. Temperature, top-k and top-p never give a token a higher chance than one that the model prefers to
it. So a token of rank r is drawn with a chance of 1/r at most, and a suffix with the product of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ltmia.records import RaggedStatistics, TokenStatistics

DRAWS = (1, 10, 100, 1_000, 1_000_000)
"""Numbers of draws that shares are given for."""
NAMED_DRAWS = 1_000
"""The number of draws where only one is named: as many as a curious user may try."""
PROBABILITY = 0.5
"""Probability with which an extractable text comes out at least once."""
LONGEST_SUFFIX = 50
"""Tokens of a suffix at most, as published."""
SHORTEST_SUFFIX = 10
"""Tokens of a suffix at least: shorter ones are often guessed."""
IMPOSSIBLE = -65504.0
"""A store keeps no log-probability below this: here and below it counts as probability 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffixes:
    """Probabilities of each text's suffix under both models, as arrays of equal length."""

    n_tokens: Int64[np.ndarray, " texts"]
    """Length of the suffix; 0 where a text is too short for one or could not be scored."""
    target_logp: Float64[np.ndarray, " texts"]
    """Log-probability that one draw from the target gives the suffix, in nats; NaN without a suffix."""
    reference_logp: Float64[np.ndarray, " texts"]
    target_top_logp: Float64[np.ndarray, " texts"]
    """The same if only the target's k most likely tokens can be drawn, for the k of the statistics. A true token that
    ties for the k-th place can be drawn."""
    target_bound: Float64[np.ndarray, " texts"]
    """Largest log-probability that any temperature, top-k and top-p can give, or more: minus the sum of log ranks."""
    reference_bound: Float64[np.ndarray, " texts"]

    def __len__(self) -> int:
        return len(self.n_tokens)

    @property
    def measured(self) -> Bool[np.ndarray, " texts"]:
        """Whether a text has a suffix."""
        return self.n_tokens > 0

    @property
    def target_greedy(self) -> Bool[np.ndarray, " texts"]:
        """Whether the target writes the suffix if the most likely token is taken each time; a tie counts as a match."""
        return self.target_bound == 0

    @property
    def reference_greedy(self) -> Bool[np.ndarray, " texts"]:
        """The same for the reference."""
        return self.reference_bound == 0

    @classmethod
    def concatenate(cls, parts: Sequence["Suffixes"]) -> "Suffixes":
        """Join the suffixes of several lists of texts, in order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


def suffix_of(n_scored: int, *, prompted: bool) -> slice:
    """Return the scored positions that are a text's suffix; an empty slice if there would be too few.

    The suffix of a text is its second half; for an answer to a prompt it is the whole answer. Only the first
    `LONGEST_SUFFIX` tokens of it count.

    Args:
        n_scored: Scored positions of the text.
        prompted: Whether a prompt, which is not scored, comes before these positions.
    """
    start = 0 if prompted else n_scored - n_scored // 2
    stop = min(n_scored, start + LONGEST_SUFFIX)
    return slice(start, stop) if stop - start >= SHORTEST_SUFFIX else slice(0, 0)


def read_suffixes(statistics: RaggedStatistics, prompted: Sequence[bool]) -> Suffixes:
    """Sum the log-probabilities of each text's suffix.

    Args:
        statistics: Statistics of the texts' scored positions.
        prompted: For each text, whether a prompt stands before what is scored.
    """
    rows = [_read(tokens, behind) for tokens, behind in zip(statistics, prompted, strict=True)]
    n_tokens, *logps = zip(*rows, strict=True) if rows else ((),) * len(fields(Suffixes))
    target, reference, target_top, target_bound, reference_bound = (np.array(logp, np.float64) for logp in logps)
    return Suffixes(
        n_tokens=np.array(n_tokens, np.int64),
        target_logp=target,
        reference_logp=reference,
        target_top_logp=target_top,
        target_bound=target_bound,
        reference_bound=reference_bound,
    )


def _read(tokens: TokenStatistics, prompted: bool) -> tuple[int, float, float, float, float, float]:
    place = suffix_of(len(tokens), prompted=prompted)
    target_rank, reference_rank = tokens.target_rank[place], tokens.reference_rank[place]
    if not len(target_rank) or not (target_rank.all() and reference_rank.all()):  # rank 0: a model gave NaN
        return 0, np.nan, np.nan, np.nan, np.nan, np.nan
    target, reference = tokens.target_logp[place].astype(np.float64), tokens.reference_logp[place].astype(np.float64)
    never = ~(target > IMPOSSIBLE)
    target[never] = -np.inf
    reference[never | ~(reference > IMPOSSIBLE)] = -np.inf  # kept as a difference from the target's, so lost with it
    top = np.logaddexp.reduce(tokens.top_logp[place].astype(np.float64), axis=1)
    target_top = np.where(target_rank > tokens.k, -np.inf, np.minimum(target - top, 0.0))
    return (
        len(target), float(target.sum()), float(reference.sum()), float(target_top.sum()),
        -float(np.log(target_rank).sum()), -float(np.log(reference_rank).sum()),
    )  # fmt: skip


def least_logp(draws: int, probability: float = PROBABILITY) -> float:
    """Return the smallest log-probability of one draw with which a suffix is extractable within `draws` draws.

    1 - (1 - p)^n >= q holds from p = 1 - (1 - q)^(1/n) on.
    """
    return float(np.log(-np.expm1(np.log1p(-probability) / draws)))


def extractable(logp: Float64[np.ndarray, " texts"], draws: int) -> Bool[np.ndarray, " texts"]:
    """Return for each suffix whether it comes out within `draws` draws; False if it was not measured."""
    return np.nan_to_num(logp, nan=-np.inf) >= least_logp(draws)


def draws_needed(logp: Float64[np.ndarray, " texts"]) -> Int64[np.ndarray, " texts"]:
    """Return the first of `DRAWS` within which each suffix comes out; 0 if none suffices, or if it was not measured."""
    needed = np.zeros(len(logp), np.int64)
    for draws in reversed(DRAWS):
        needed[extractable(logp, draws)] = draws
    return needed
