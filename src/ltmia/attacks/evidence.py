"""Input of the fast attacks: one text, its token statistics, and the frequencies of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec

import numpy as np
from jaxtyping import Float64, Int32, Int64

from ltmia.records import TokenStatistics

Parameters = ParamSpec("Parameters")

LOGP_FLOOR = -1000.0
"""An impossible token (-inf) counts as this log-probability, so that means stay finite and ordered."""
MIN_POSITIONS = 2
"""A text with fewer scored positions is not measurable by any attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFrequencies:
    """Unigram frequencies with add-one smoothing, f_v = (count_v + 1) / (N + V)."""

    log_frequency: Float64[np.ndarray, " vocab"]

    @classmethod
    def from_counts(cls, counts: Int64[np.ndarray, " vocab"]) -> "TokenFrequencies":
        """Smooth raw counts, which include repetitions inside a text."""
        total = counts.sum() + len(counts)
        return cls(log_frequency=np.log((counts + 1.0) / total))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvidence:
    """One text, with its statistics from the shared pass."""

    text: str
    tokens: TokenStatistics
    """Statistics of its scored positions."""
    token_ids: Int32[np.ndarray, " pred"]
    """The true tokens at those positions."""
    token_frequencies: TokenFrequencies

    @classmethod
    def of_statistics(cls, tokens: TokenStatistics) -> "TextEvidence":
        """Return the evidence of a part of a text, for attacks that read no text and no token ids."""
        ids = np.full(len(tokens), -1, np.int32)
        return cls(text="", tokens=tokens, token_ids=ids, token_frequencies=TokenFrequencies(log_frequency=np.zeros(0)))

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.tokens):
            raise ValueError(f"{len(self.token_ids)} token ids for {len(self.tokens)} scored positions")

    @property
    def target_logp(self) -> Float64[np.ndarray, " pred"]:
        """The target's log-probabilities of the true tokens, none below the floor; NaN stays NaN."""
        return _floored(self.tokens.target_logp)

    @property
    def reference_logp(self) -> Float64[np.ndarray, " pred"]:
        """The reference's log-probabilities of the true tokens, none below the floor; NaN stays NaN."""
        return _floored(self.tokens.reference_logp)

    @property
    def log_ratio(self) -> Float64[np.ndarray, " pred"]:
        """D_t = log p_T - log p_R, finite; 0 where both models call the token impossible."""
        return self.target_logp - self.reference_logp


def reads(
    *columns: str,
) -> Callable[
    [Callable[Concatenate[TextEvidence, Parameters], float]], Callable[Concatenate[TextEvidence, Parameters], float]
]:
    """Turn a function into a fast attack that returns NaN if the evidence does not allow a score.

    This is so for texts with fewer than `MIN_POSITIONS`, and if one of the columns holds NaN. The attribute
    `reads` of the result names the columns.

    Args:
        columns: The fields of `TokenStatistics` that the function reads; "text" if it reads the text itself.
    """

    def decorate(
        attack: Callable[Concatenate[TextEvidence, Parameters], float],
    ) -> Callable[Concatenate[TextEvidence, Parameters], float]:
        @wraps(attack)
        def measured(evidence: TextEvidence, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> float:
            tokens = evidence.tokens
            known = (getattr(tokens, name) for name in columns if name != "text")
            if len(tokens) < MIN_POSITIONS or any(np.isnan(column).any() for column in known):
                return np.nan
            return float(attack(evidence, *args, **kwargs))

        vars(measured)["reads"] = frozenset(columns)
        return measured

    return decorate


def _floored(logp: np.ndarray) -> np.ndarray:
    # Rounding can put the log-probability of a certain token a little above 0.
    return np.clip(logp.astype(np.float64), LOGP_FLOOR, 0.0)
