"""The attacks that need passes of their own, over a list of texts: shots chosen, scores kept, work resumed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.multi_pass import SHOTS, Shots
from ltmia.attacks.table import ATTACKS, slow_attacks
from ltmia.errors import ConfigError
from ltmia.folders import make_folder, write_whole
from ltmia.models.batching import BatchSize
from ltmia.models.multi_pass import PairProbe
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent

AT_ONCE = 64
"""Texts between two words on progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbingConfig:
    """What the attacks with passes of their own are given."""

    max_length: int
    """Token ids read of each text."""
    batch_size: BatchSize
    """Texts of full length per forward pass."""
    shots: Shots = field(default_factory=Shots)
    """Texts of known membership to choose prefixes from, in order of preference."""


def probe_texts(
    pair: Pair,
    texts: Sequence[str],
    names: Sequence[str],
    config: ProbingConfig,
    *,
    folder: Path | None = None,
    fingerprint: str = "",
    report: Report = silent,
) -> dict[str, Float64[np.ndarray, " texts"]]:
    """Score texts with those of the named attacks that need passes of their own.

    Args:
        pair: Target and reference.
        texts: Any strings; one that serves as a shot is not scored by the attacks that use shots.
        names: Attacks; others than slow ones are left to the shared pass.
        config: Sizes and shots.
        folder: Where the scores of each finished attack are kept and found again; nowhere when None.
        fingerprint: Hash of the models and texts, which decides whether kept scores are the same work.
        report: Told the progress.

    Raises:
        ConfigError: If an attack needs shots and none of those given fits before a text.
    """
    names = slow_attacks(names)
    if not names:
        return {}
    if folder is not None:
        make_folder(folder)
    probe = PairProbe(pair, max_length=config.max_length, batch_size=config.batch_size, remember=texts)
    shots = _fitting(probe, config.shots)
    key = _key(fingerprint, config.max_length, shots)
    found = {}
    for name in names:
        kept = None if folder is None else _read_kept(folder / f"{name}.json", key)
        found[name] = _scored(name, probe, texts, shots, report) if kept is None else kept
        if folder is not None and kept is None:
            _keep(folder / f"{name}.json", key, found[name])
    return found


def _fitting(probe: PairProbe, shots: Shots) -> Shots:
    fitting = Shots(
        nonmembers=probe.fitting_shots(shots.nonmembers, SHOTS), members=probe.fitting_shots(shots.members, SHOTS)
    )
    for kind, given, chosen in (
        ("non-member", shots.nonmembers, fitting.nonmembers),
        ("member", shots.members, fitting.members),
    ):
        if given and not chosen:
            raise ConfigError(
                f"no {kind} text fits before another in the models' longest input: lower max_length, or leave out "
                "recall and con_recall"
            )
    return fitting


def _scored(
    name: str, probe: PairProbe, texts: Sequence[str], shots: Shots, report: Report
) -> Float64[np.ndarray, " texts"]:
    function = ATTACKS[name].slow
    if function is None:
        raise ConfigError(f"{name} has no passes of its own")
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        parts.append(function(probe, texts[start : start + AT_ONCE], shots))
        report(name, min(start + AT_ONCE, len(texts)), len(texts))
    return np.concatenate(parts) if parts else np.empty(0)


def _key(fingerprint: str, max_length: int, shots: Shots) -> str:
    text = json.dumps([fingerprint, max_length, shots.nonmembers, shots.members])
    return sha256(text.encode()).hexdigest()


def _read_kept(path: Path, key: str) -> Float64[np.ndarray, " texts"] | None:
    try:
        kept = json.loads(path.read_text("utf-8"))
        return np.array(kept["scores"], np.float64) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: computed again


def _keep(path: Path, key: str, scores: Float64[np.ndarray, " texts"]) -> None:
    values = [None if np.isnan(score) else score for score in scores.tolist()]
    text = json.dumps({"key": key, "scores": values})
    write_whole(path, lambda part: part.write_text(text, "utf-8"))
