"""How far a model prefers a secret to other values of its form: exposure (Carlini et al. 2019, arXiv 1802.08232).

All values of the form are ranked by the probability that the model gives them in the secret's place; rank 1 is the
most likely. The exposure of the secret is log2(number of values) - log2(its rank), in bits. A model that knows nothing
of the secret gives it a random rank: its exposure is b or more with probability 2^-b.

Mostly only some values are tried. The share of them that beat the secret then stands for the share of all. Its exact
binomial interval (Clopper and Pearson) makes the interval of the exposure, which holds for any distribution of the
probabilities; the paper's skew-normal extrapolation does not.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import beta

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """The outcome of ranking a secret among alternatives."""

    n: int
    """Alternatives tried."""
    n_better: int
    """Alternatives that the model prefers to the secret; of those it gives the same probability, half."""
    are_all: bool
    """Whether these were all other values of the form."""
    bits: float
    """log2 of the number of values of the form."""

    @property
    def exposure(self) -> float:
        """Exposure in bits, computed from the secret's rank among the alternatives that were tried."""
        return math.log2((self.n + 1) / (self.n_better + 1))

    @property
    def reach(self) -> float:
        """Exposure if no alternative beat the secret: a sample cannot show more."""
        return math.log2(self.n + 1)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return both ends of the exposure's interval, in bits; they are equal if all alternatives were tried."""
        if self.are_all:
            return self.exposure, self.exposure
        tail, n, k = (1 - confidence) / 2, self.n, self.n_better
        least = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
        most = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
        low, high = (self._bits_at(share) for share in (most, least))
        return min(low, self.exposure), max(high, self.exposure)

    def _bits_at(self, share: float) -> float:
        """Return the exposure if this share of all other values beats the secret."""
        with np.errstate(divide="ignore"):  # the logarithm of 0 is meant
            return self.bits - float(np.logaddexp2(np.log2(1 - share), np.log2(share) + self.bits))


def rank(secret: float, others: Float64[np.ndarray, " tried"], *, are_all: bool, bits: float) -> Tried:
    """Rank a secret among alternatives.

    Args:
        secret: Log-probability of the secret, in nats.
        others: Log-probabilities of the alternatives.
        are_all: Whether these are all other values of the form.
        bits: log2 of the number of values of the form.
    """
    better, equal = int((others > secret).sum()), int((others == secret).sum())
    return Tried(n=len(others), n_better=better + equal // 2, are_all=are_all, bits=bits)
