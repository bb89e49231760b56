"""Chooses attacks by name or group, and runs the fast ones on a text."""

import difflib
from collections.abc import Sequence

from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.table import ATTACKS
from ltmia.errors import ConfigError


def select_attacks(wanted: str | Sequence[str], *, pairs: bool = False) -> tuple[str, ...]:
    """Return the names of the attacks to run, each once, in the table's order.

    Args:
        wanted: Names of attacks or groups, in a list or separated by commas, such as "fast,recall". The groups are
            "fast" (the attacks of the shared pass, the classifier and the control), "recorded" (attacks that need only
            recorded log-probabilities) and "all". None of them includes the attacks on weights: an audit adds those
            by its observer.
        pairs: Whether the texts are preference pairs. Without them, no group includes the attacks on pairs.

    Raises:
        ConfigError: If a name is unknown, or there is none.
    """
    names = wanted.split(",") if isinstance(wanted, str) else wanted
    names = [name.strip() for name in names if name.strip()]
    chosen: set[str] = set()
    for name in names:
        chosen |= _GROUPS[name] - (set() if pairs else PAIRS) if name in _GROUPS else {_known(name)}
    if not chosen:
        raise ConfigError(f"no attack is named; available: {_available()}")
    return tuple(name for name in ATTACKS if name in chosen)


def fast_attacks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the attacks among these that the shared pass computes."""
    return tuple(name for name in names if ATTACKS[_known(name)].fast)


def slow_attacks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the attacks among these that take several passes."""
    return tuple(name for name in names if ATTACKS[_known(name)].slow)


def score_evidence(evidence: TextEvidence, names: Sequence[str]) -> dict[str, float]:
    """Score one text with the fast attacks named; NaN where an attack cannot measure it.

    Raises:
        ConfigError: If a name is unknown, or is not a fast attack.
    """
    scores = {}
    for name in names:
        function = ATTACKS[_known(name)].fast
        if function is None:
            raise ConfigError(
                f"{name} is not computed in the shared pass; those that are: {', '.join(fast_attacks(tuple(ATTACKS)))}"
            )
        scores[name] = function(evidence)
    return scores


PAIRS = {attack.name for attack in ATTACKS.values() if attack.pairs}
"""Attacks on preference pairs."""
_GROUPS = {
    "fast": {attack.name for attack in ATTACKS.values() if attack.group not in ("slow", "weights")},
    "recorded": {attack.name for attack in ATTACKS.values() if attack.recorded},
    "all": {attack.name for attack in ATTACKS.values() if attack.group != "weights"},
}


def _known(name: str) -> str:
    if name in ATTACKS:
        return name
    spelt = name.lower().replace("-", "_").replace(" ", "_")
    near = [repr(match) for match in difflib.get_close_matches(spelt, [*ATTACKS, *_GROUPS], n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"unknown attack {name!r}; {hint}available: {_available()}")


def _available() -> str:
    return ", ".join([*_GROUPS, *ATTACKS])
