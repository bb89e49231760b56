"""The table of attacks: one row each, and everything that lists, selects or runs attacks reads it."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ltmia.attacks import likelihood, probing, reference
from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.probing import Scores, Shots, TargetProbe
from ltmia.errors import ConfigError

FastFunction = Callable[[TextEvidence], float]
SlowFunction = Callable[[TargetProbe, Sequence[str], Shots], Scores]

LEARNED = "ltmia"
"""The learned classifier."""
CONTROL = "bag_of_words"
"""The control that never sees a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to give a text a score; higher is more member-like."""

    name: str
    needs: str
    passes: str
    """Forward passes per text, target / reference."""
    source: str
    fast: FastFunction | None = None
    """Scores one text from the shared pass."""
    slow: SlowFunction | None = None
    """Scores texts with passes of its own."""

    @property
    def group(self) -> str:
        """fast, slow, learned or control: what it costs and when it runs."""
        if self.fast:
            return "fast"
        if self.slow:
            return "slow"
        return "learned" if self.name == LEARNED else "control"

    @property
    def summary(self) -> str:
        """First sentence of the function's documentation."""
        function = self.fast or self.slow
        if function is None:
            return _SUMMARIES[self.name]
        return (function.__doc__ or "").strip().splitlines()[0]


_SUMMARIES = {
    LEARNED: "Return the logit of the learned classifier over per-token features of both models.",
    CONTROL: "Control: tell members from non-members by their words alone, without any model.",
}

_TARGET, _PAIR = "target", "target + reference"

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack(name=LEARNED, needs=_PAIR, passes="1/1", source="arXiv 2604.03199"),
        Attack(
            name="loss",
            needs=_TARGET,
            passes="1/0",
            source="arXiv 1709.01604",
            fast=likelihood.loss,
        ),
        Attack(
            name="zlib",
            needs=_TARGET,
            passes="1/0",
            source="arXiv 2012.07805",
            fast=likelihood.zlib,
        ),
        Attack(
            name="difference",
            needs=_PAIR,
            passes="1/1",
            source="arXiv 2012.07805, 2203.03929",
            fast=likelihood.difference,
        ),
        Attack(
            name="ratio",
            needs=_PAIR,
            passes="1/1",
            source="arXiv 2012.07805",
            fast=likelihood.ratio,
        ),
        Attack(
            name="min_k",
            needs=_TARGET,
            passes="1/0",
            source="arXiv 2310.16789",
            fast=likelihood.min_k,
        ),
        Attack(
            name="min_k_plus_plus",
            needs="target, whole vocabulary",
            passes="1/0",
            source="arXiv 2404.02936",
            fast=likelihood.min_k_plus_plus,
        ),
        Attack(
            name="dc_pdd",
            needs="target, token counts",
            passes="1/0",
            source="EMNLP 2024 main 300",
            fast=likelihood.dc_pdd,
        ),
        Attack(
            name="surp",
            needs=_TARGET,
            passes="1/0",
            source="arXiv 2405.11930",
            fast=likelihood.surp,
        ),
        Attack(
            name="gap_k",
            needs=_TARGET,
            passes="1/0",
            source="arXiv 2601.19936",
            fast=likelihood.gap_k,
        ),
        Attack(
            name="ez_mia",
            needs=_PAIR,
            passes="1/1",
            source="arXiv 2601.12104",
            fast=reference.ez_mia,
        ),
        Attack(name="wbc", needs=_PAIR, passes="1/1", source="arXiv 2601.02751", fast=reference.wbc),
        Attack(
            name="lowercase",
            needs=_TARGET,
            passes="2/0",
            source="arXiv 2012.07805",
            slow=probing.lowercase,
        ),
        Attack(
            name="recall",
            needs="target, non-members",
            passes="2/0",
            source="arXiv 2406.15968",
            slow=probing.recall,
        ),
        Attack(
            name="con_recall",
            needs="target, members and non-members",
            passes="3/0",
            source="arXiv 2409.03363",
            slow=probing.con_recall,
        ),
        Attack(
            name="neighbourhood",
            needs=_PAIR,
            passes="11/1",
            source="arXiv 2305.18462",
            slow=probing.neighbourhood,
        ),
        Attack(
            name="gradient_norm",
            needs="target, gradients",
            passes="1/0 + backward",
            source="arXiv 2402.17012",
            slow=probing.gradient_norm,
        ),
        Attack(
            name=CONTROL,
            needs="labelled texts",
            passes="0/0",
            source="arXiv 2406.17975, 2406.16201",
        ),
    )
}


def select_attacks(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the attacks to run, in the table's order.

    Args:
        wanted: "fast" (all that share the one pass, and the classifier), "all", or names, in a list or with commas.

    Raises:
        ConfigError: If a name is unknown.
    """
    if wanted in ("fast", "all"):
        return tuple(a.name for a in ATTACKS.values() if wanted == "all" or a.group != "slow")
    names = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    names = [name.strip() for name in names]
    for name in names:
        if name not in ATTACKS:
            near = difflib.get_close_matches(name, ATTACKS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown attack {name!r}; {hint}available: fast, all, {', '.join(ATTACKS)}")
    return tuple(name for name in ATTACKS if name in names)


def fast_attacks(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names that the shared pass computes."""
    return tuple(name for name in names if ATTACKS[name].fast)


def score_evidence(evidence: TextEvidence, names: Sequence[str]) -> dict[str, float]:
    """Score one text with the fast attacks named; NaN for a text without scored positions or with broken numbers."""
    tokens = evidence.tokens
    unusable = not len(tokens) or np.isnan(tokens.target_logp).any()
    scores = {}
    for name in names:
        function = ATTACKS[name].fast
        if function is None:
            raise ValueError(f"{name} is not computed in the shared pass")
        scores[name] = np.nan if unusable else float(function(evidence))
    return scores
