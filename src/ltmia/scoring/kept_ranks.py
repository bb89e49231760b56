"""Keeps each rank of a secret on disk as soon as it is known, so that a run that was killed goes on after the last."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ltmia.folders import named_errors, write_whole
from ltmia.progress import Report
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.reuse import note_reused

Model = Literal["target", "reference"]

log = logging.getLogger(__name__)


class KeptRank(BaseModel):
    """What one model says of one secret."""

    model_config = ConfigDict(frozen=True, strict=True)

    key: str
    """Hash of the models, and of the token ids of the secret and its alternatives."""
    model: Model
    logp: FiniteFloat
    """Log-probability of the secret, in nats."""
    n_better: int
    """See `Tried`."""
    seconds: FiniteFloat
    """How long it took to rank it."""
    created: datetime


class KeptRanks:
    """A file of ranks: one line each, after its hash. Lines of other work are removed when a run is done."""

    def __init__(self, path: Path, models: str) -> None:
        """Read what an earlier run left; remove what is damaged.

        Args:
            path: The file; it may be missing.
            models: Hash of everything that decides the outputs of both models.
        """
        self._path, self._models = path, models
        self._used: dict[str, KeptRank] = {}
        self._reused: list[KeptRank] = []
        content = path.read_bytes() if path.is_file() else b""
        *lines, torn = content.split(b"\n")  # what follows the last line break was cut off by a kill
        ranks = [_from_line(line) for line in lines]
        self._known: dict[str, KeptRank] = {rank.key: rank for rank in ranks if rank is not None}
        if None in ranks:
            log.warning("%s: %d damaged lines; these secrets are ranked again", path, ranks.count(None))
        if torn or None in ranks:
            self._write(self._known)

    def key(self, model: Model, ids: bytes) -> str:
        """Return the key of a secret that a model ranks.

        Args:
            model: Which of the two models.
            ids: Everything that it is given.
        """
        return sha256(f"{self._models} {model} ".encode() + ids).hexdigest()

    def find(self, key: str) -> KeptRank | None:
        """Return a rank that is known already."""
        found = self._known.get(key)
        if found is not None and key not in self._used:
            self._used[key] = found
            self._reused.append(found)
        return found

    def keep(self, key: str, model: Model, logp: float, n_better: int, seconds: float) -> None:
        """Write a rank to disk."""
        rank = KeptRank(key=key, model=model, logp=logp, n_better=n_better, seconds=seconds, created=datetime.now(UTC))
        self._known[key] = self._used[key] = rank
        with named_errors(self._path), self._path.open("ab") as file:
            file.write(_as_line(rank))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, clock: ExtractionClock, report: Report) -> None:
        """Note which ranks were reused, and remove those that were not used in this run."""
        if self._reused:
            n_reused, n_used = (_n_secrets(ranks) for ranks in (self._reused, self._used.values()))
            since = min(rank.created for rank in self._reused)
            note_reused(clock.reused, "secrets", since=since, n_texts=n_reused, of=n_used, report=report)
            clock.earlier += sum(rank.seconds for rank in self._reused)
        if len(self._used) < len(self._known):
            self._write(self._used)

    def _write(self, ranks: Mapping[str, KeptRank]) -> None:
        write_whole(self._path, lambda part: part.write_bytes(b"".join(map(_as_line, ranks.values()))))


def _n_secrets(ranks: Iterable[KeptRank]) -> int:
    """Count the secrets that at least one model has ranked: the first model ranks all of them before the second."""
    return max(Counter(rank.model for rank in ranks).values())


def _as_line(rank: KeptRank) -> bytes:
    content = rank.model_dump_json().encode()
    return sha256(content).hexdigest().encode() + b" " + content + b"\n"


def _from_line(line: bytes) -> KeptRank | None:
    said, _, content = line.partition(b" ")
    if said != sha256(content).hexdigest().encode():
        return None
    try:
        return KeptRank.model_validate_json(content)
    except ValidationError:  # of another version
        return None
