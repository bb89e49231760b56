"""What a fast attack may look at: one text, its token statistics, and how frequent tokens are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from ltmia.records import TokenStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFrequencies:
    """Unigram frequencies with add-one smoothing, f_v = (count_v + 1) / (N + V)."""

    log_frequency: Float64[np.ndarray, " vocab"]

    @classmethod
    def from_counts(cls, counts: Int64[np.ndarray, " vocab"]) -> "TokenFrequencies":
        """Smooth raw counts, every occurrence counted."""
        total = counts.sum() + len(counts)
        return cls(log_frequency=np.log((counts + 1.0) / total))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvidence:
    """One text after the shared pass."""

    text: str
    tokens: TokenStatistics
    """Statistics of its scored positions."""
    token_ids: Int32[np.ndarray, " pred"]
    """The true tokens at those positions."""
    token_frequencies: TokenFrequencies
