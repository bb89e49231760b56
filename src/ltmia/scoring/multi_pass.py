"""Runs the attacks that take several passes; chooses few-shot examples, and keeps finished scores."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.multi_pass import SHOTS, Shots
from ltmia.attacks.selection import slow_attacks
from ltmia.attacks.table import ATTACKS
from ltmia.errors import ConfigError
from ltmia.evaluation.results import Reused
from ltmia.folders import make_folder, write_whole
from ltmia.models.batching import BatchSize
from ltmia.models.multi_pass import PairQueries
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.scoring.reuse import note_reused

AT_ONCE = 64
"""Texts between two reports of progress."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiPassConfig:
    """Settings of the attacks that take several passes."""

    max_length: int
    """Token ids read of each text."""
    batch_size: BatchSize
    """Texts of full length per forward pass."""
    shots: Shots = field(default_factory=Shots)
    """Texts of known membership to choose prefixes from, in order of preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptScores:
    """Scores of finished attacks in a folder, one file each, for the next run of the same work."""

    folder: Path
    fingerprint: str
    """Hash of the models and texts; kept scores are used only if it is the same."""
    reused: list[Reused]
    """Receives an entry for each reused attack."""

    def find(self, name: str, key: Sequence[Any], report: Report) -> Float64[np.ndarray, " texts"] | None:
        """Return the kept scores of an attack; None if they are missing, damaged or of other work."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text("utf-8"))
            if kept["sha256"] != _hash([kept["key"], kept["scores"]]):
                raise ValueError("its content does not fit its hash")
            scores = np.array(kept["scores"], np.float64)
            since = datetime.fromisoformat(kept["created"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s: damaged (%s); the attack is run again", path, error)
            return None
        if kept["key"] != self._key(key):
            return None
        note_reused(self.reused, name, since=since, n_texts=len(scores), of=len(scores), report=report)
        return scores

    def keep(self, name: str, key: Sequence[Any], scores: Float64[np.ndarray, " texts"]) -> None:
        """Write the scores of an attack."""
        values = [None if np.isnan(score) else score for score in scores.tolist()]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"key": self._key(key), "scores": values}
        text = json.dumps(content | {"sha256": _hash(list(content.values())), "created": created})
        write_whole(self.folder / f"{name}.json", lambda part: part.write_text(text, "utf-8"))

    def _key(self, key: Sequence[Any]) -> str:
        return _hash([self.fingerprint, *key])


def _hash(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()


def multi_pass_scores(
    pair: Pair,
    texts: Sequence[str],
    names: Sequence[str],
    config: MultiPassConfig,
    *,
    kept: KeptScores | None = None,
    report: Report = silent,
) -> dict[str, Float64[np.ndarray, " texts"]]:
    """Score texts with those of the named attacks that take several passes.

    Args:
        pair: Target and reference.
        texts: Any strings; one that serves as a shot is not scored by the attacks that use shots.
        names: Attacks; those that the shared pass computes are ignored.
        config: Sizes and shots.
        kept: Where the scores of finished attacks are kept; None: they are not kept.
        report: Called with progress.

    Raises:
        ConfigError: If an attack needs shots and none of those given fits before a text.
    """
    names = slow_attacks(names)
    if not names:
        return {}
    if kept is not None:
        make_folder(kept.folder)
    queries = PairQueries(pair, max_length=config.max_length, batch_size=config.batch_size, remember=texts)
    shots = _fitting(queries, config.shots)
    found = {}
    for name in names:
        key = [name, config.max_length, shots.nonmembers, shots.members]
        scores = None if kept is None else kept.find(name, key, report)
        if scores is None:
            scores = _scored(name, queries, texts, shots, report)
            if kept is not None:
                kept.keep(name, key, scores)
        found[name] = scores
    return found


def _fitting(queries: PairQueries, shots: Shots) -> Shots:
    fitting = Shots(
        nonmembers=queries.fitting_shots(shots.nonmembers, SHOTS), members=queries.fitting_shots(shots.members, SHOTS)
    )
    for kind, given, chosen in (
        ("non-member", shots.nonmembers, fitting.nonmembers),
        ("member", shots.members, fitting.members),
    ):
        if given and not chosen:
            raise ConfigError(
                f"the models' longest input has no room for a {kind} text before the text to score: lower max_length, "
                "or leave out recall and con_recall"
            )
    return fitting


def _scored(
    name: str, queries: PairQueries, texts: Sequence[str], shots: Shots, report: Report
) -> Float64[np.ndarray, " texts"]:
    function = ATTACKS[name].slow
    if function is None:
        raise ConfigError(f"{name} does not take several passes")
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        parts.append(function(queries, texts[start : start + AT_ONCE], shots))
        report(name, min(start + AT_ONCE, len(texts)), len(texts))
    return np.concatenate(parts) if parts else np.empty(0)
