"""Attacks that need more passes than the shared one: changed texts, prefixes, neighbours, gradients.

A `TargetQueries` runs these passes. Every function returns one score per text, in the order of the texts: higher for a
more likely member, NaN if nothing can be measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.evidence import MIN_POSITIONS
from ltmia.errors import ConfigError

Scores = Float64[np.ndarray, " texts"]
Losses = Float64[np.ndarray, " _"]
"""Losses of the scored tokens of one text."""

SHOTS = 12
"""Texts in a prefix by default, as in the published ReCaLL code."""
NEIGHBOURS = 25
"""Neighbours per text by default, as in the published benchmark of the attack."""


@runtime_checkable
class TargetQueries(Protocol):
    """Runs the models on request. Each answer depends only on its own text."""

    def token_losses(self, texts: Sequence[str], prefix: str = "") -> Sequence[Losses]:
        """Return -log p of each text's tokens, in nats; the prefix comes before them and is not scored.

        The same positions are scored with and without a prefix. A text has no losses if it cannot be scored or does
        not fit after the prefix; it is never cut.
        """
        ...

    def gradient_norms(self, texts: Sequence[str], order: float) -> Scores:
        """Return the mean over parameter tensors of the norm of each text's mean loss's gradient; NaN if unscorable.

        `order` is the order of the norm: 1, 2 or infinity.
        """
        ...

    def neighbours(self, text: str, n: int) -> Sequence[str]:
        """Return at most n texts in which a few tokens are replaced by ones that the reference LM proposes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """Texts of known membership that serve as few-shot prefix. Do not evaluate on these texts."""

    nonmembers: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


def lowercase(queries: TargetQueries, texts: Sequence[str], _shots: Shots) -> Scores:
    """Return the loss of the lower-cased text divided by that of the text (Carlini et al. 2021, arXiv 2012.07805)."""
    lowered = _means(queries.token_losses([text.lower() for text in texts]))
    return _divided(lowered, _means(queries.token_losses(texts)))


def recall(queries: TargetQueries, texts: Sequence[str], shots: Shots) -> Scores:
    """Return the loss after a prefix of known non-members divided by the loss without it (ReCaLL, arXiv 2406.15968).

    Only the text's own tokens are scored. A text that is itself a shot is NaN.

    Raises:
        ConfigError: Without non-member shots.
    """
    alone = queries.token_losses(texts)
    after = _losses_after(queries, texts, shots.nonmembers, alone, "non-members")
    return _divided(after, _means(alone))


def con_recall(queries: TargetQueries, texts: Sequence[str], shots: Shots, gamma: float = 1.0) -> Scores:
    """Return (loss after non-members - gamma x loss after members) / loss (CON-ReCaLL, arXiv 2409.03363).

    Only the text's own tokens are scored. A text that is itself a shot is NaN.

    Raises:
        ConfigError: Without shots of either kind.
    """
    alone = queries.token_losses(texts)
    after_nonmembers = _losses_after(queries, texts, shots.nonmembers, alone, "non-members")
    after_members = _losses_after(queries, texts, shots.members, alone, "members")
    return _divided(after_nonmembers - gamma * after_members, _means(alone))


def neighbourhood(queries: TargetQueries, texts: Sequence[str], _shots: Shots, n: int = NEIGHBOURS) -> Scores:
    """Return the mean loss of similar texts minus the loss of the text (Mattern et al. 2023, arXiv 2305.18462).

    The paper replaces words by ones that a masked LM proposes. Here the reference LM proposes them from the preceding
    words only, so that no third model is needed; results are not comparable with the paper's.
    """
    scores = -_means(queries.token_losses(texts))
    for i, text in enumerate(texts):
        near = queries.neighbours(text, n)
        scores[i] += _means(queries.token_losses(near)).mean() if len(near) else np.nan
    return scores


def gradient_norm(queries: TargetQueries, texts: Sequence[str], _shots: Shots, order: float = np.inf) -> Scores:
    """Return minus the gradient norm of the loss, which is small for memorised texts (arXiv 2402.17012)."""
    return -np.asarray(queries.gradient_norms(texts, order), np.float64)


def _losses_after(
    queries: TargetQueries, texts: Sequence[str], shots: Sequence[str], alone: Sequence[Losses], kind: str
) -> Scores:
    """Mean losses after the shots, over the positions that the texts alone were scored on."""
    if not shots:
        raise ConfigError(
            f"a prefix of known {kind} is needed: give some ({SHOTS} are usual), not among the candidates"
        )
    after = queries.token_losses(texts, "".join(shots))
    for i, (with_prefix, without) in enumerate(zip(after, alone, strict=True)):
        if len(with_prefix) not in (0, len(without)):
            raise ValueError(
                f"text {i}: {len(with_prefix)} losses after the prefix and {len(without)} without: expected "
                "losses of the same positions, or none after the prefix"
            )
    means = _means(after)
    means[[text in shots for text in texts]] = np.nan
    return means


def _means(losses: Sequence[Losses]) -> Scores:
    return np.array([x.mean() if len(x) >= MIN_POSITIONS else np.nan for x in losses], np.float64)


def _divided(losses: Scores, by: Scores) -> Scores:
    """Losses over losses; NaN where there is no loss to divide by."""
    return losses / np.where(by == 0, np.nan, by)
