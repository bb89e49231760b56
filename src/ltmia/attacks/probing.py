"""Attacks that need passes of their own: other texts, prefixes, neighbours, gradients.

They ask a `TargetProbe` for those passes and know nothing of how it makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

Scores = Float64[np.ndarray, " texts"]


@runtime_checkable
class TargetProbe(Protocol):
    """Further looks at the target, on request."""

    def mean_losses(self, texts: Sequence[str], prefix: str = "") -> Scores:
        """Mean loss of each text's own tokens, in nats, after a prefix; NaN where unscorable."""
        ...

    def gradient_norms(self, texts: Sequence[str]) -> Scores:
        """Mean over parameter tensors of the largest absolute gradient of each text's mean loss."""
        ...

    def neighbours(self, text: str, n: int) -> list[str]:
        """At most n texts that differ from this one in one token, as the reference LM proposes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """Texts to put before the candidates; they must not be among the candidates."""

    nonmembers: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


def lowercase(probe: TargetProbe, texts: Sequence[str], _shots: Shots) -> Scores:
    """Return the loss of the lower-cased text over the loss of the text (arXiv 2012.07805)."""
    return probe.mean_losses([text.lower() for text in texts]) / probe.mean_losses(texts)


def recall(probe: TargetProbe, texts: Sequence[str], shots: Shots) -> Scores:
    """Return the loss after a prefix of known non-members over the loss alone (ReCaLL, arXiv 2406.15968)."""
    return probe.mean_losses(texts, "".join(shots.nonmembers)) / probe.mean_losses(texts)


def con_recall(probe: TargetProbe, texts: Sequence[str], shots: Shots, gamma: float = 1.0) -> Scores:
    """Return (loss after non-members - gamma x loss after members) / loss (CON-ReCaLL, arXiv 2409.03363)."""
    after_nonmembers = probe.mean_losses(texts, "".join(shots.nonmembers))
    after_members = probe.mean_losses(texts, "".join(shots.members))
    return (after_nonmembers - gamma * after_members) / probe.mean_losses(texts)


def neighbourhood(probe: TargetProbe, texts: Sequence[str], _shots: Shots, n_neighbours: int = 10) -> Scores:
    """Return the mean loss of near texts minus the loss of the text (arXiv 2305.18462).

    The paper swaps single words for those a masked LM proposes. Here the reference LM proposes them, from what
    precedes the word only, so that no third model is needed; results are not comparable with the paper's.
    """
    scores = np.full(len(texts), np.nan)
    own = probe.mean_losses(texts)
    for i, text in enumerate(texts):
        neighbours = probe.neighbours(text, n_neighbours)
        if neighbours:
            scores[i] = np.mean(probe.mean_losses(neighbours)) - own[i]
    return scores


def gradient_norm(probe: TargetProbe, texts: Sequence[str], _shots: Shots) -> Scores:
    """Return minus the gradient norm of the loss: a memorised text hardly pulls at the weights (arXiv 2402.17012)."""
    return -probe.gradient_norms(texts)
