"""Keeps finished work of both models on disk, one line each, so that a run that was killed goes on after the last."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ltmia.folders import named_errors, write_whole
from ltmia.progress import Report
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.reuse import note_reused

Model = Literal["target", "reference"]

log = logging.getLogger(__name__)


class KeptLine(BaseModel):
    """What one model did with one item; subclasses add the outcome."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Hash of the models, and of everything else that the outcome depends on."""
    model: Model
    seconds: FiniteFloat
    """How long it took."""
    created: datetime


Line = TypeVar("Line", bound=KeptLine)


class KeptLines(Generic[Line]):
    """A file of outcomes: one line each, after its hash. Lines of other work are removed when a run is done.

    Args:
        path: The file; it may be missing.
        models: Hash of everything that decides the outputs of both models.
        kind: Type of the lines.
        what: What the items are called.
    """

    def __init__(self, path: Path, models: str, kind: type[Line], what: str) -> None:
        """Read what an earlier run left; remove what is damaged."""
        self._path, self._models, self._kind, self._what = path, models, kind, what
        self._used: dict[str, Line] = {}
        self._reused: list[Line] = []
        content = path.read_bytes() if path.is_file() else b""
        *lines, torn = content.split(b"\n")  # what follows the last line break was cut off by a kill
        found = [self._from_line(line) for line in lines]
        self._known: dict[str, Line] = {line.key: line for line in found if line is not None}
        if None in found:
            log.warning("%s: %d damaged lines; these %s are done again", path, found.count(None), what)
        if torn or None in found:
            self._write(self._known)

    def key(self, model: Model, content: bytes) -> str:
        """Return the key of an item of a model.

        Args:
            model: Which of the two models.
            content: Everything that it is given.
        """
        return sha256(f"{self._models} {model} ".encode() + content).hexdigest()

    def find(self, key: str) -> Line | None:
        """Return an outcome that is known already."""
        found = self._known.get(key)
        if found is not None and key not in self._used:
            self._used[key] = found
            self._reused.append(found)
        return found

    def keep(self, key: str, model: Model, seconds: float, **outcome: Any) -> None:
        """Write an outcome to disk."""
        line = self._kind(key=key, model=model, seconds=seconds, created=datetime.now(UTC), **outcome)
        self._known[key] = self._used[key] = line
        with named_errors(self._path), self._path.open("ab") as file:
            file.write(_as_line(line))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, clock: ExtractionClock, report: Report) -> None:
        """Note which outcomes were reused, and remove those that were not used in this run."""
        if self._reused:
            n_reused, n_used = (_n_items(lines) for lines in (self._reused, self._used.values()))
            since = min(line.created for line in self._reused)
            note_reused(clock.reused, self._what, since=since, n_texts=n_reused, of=n_used, report=report)
            clock.earlier += sum(line.seconds for line in self._reused)
        if len(self._used) < len(self._known):
            self._write(self._used)

    def _write(self, lines: Mapping[str, Line]) -> None:
        write_whole(self._path, lambda part: part.write_bytes(b"".join(map(_as_line, lines.values()))))

    def _from_line(self, line: bytes) -> Line | None:
        said, _, content = line.partition(b" ")
        if said != sha256(content).hexdigest().encode():
            return None
        try:
            return self._kind.model_validate_json(content, strict=True)
        except ValidationError:  # of another version
            return None


def _n_items(lines: Iterable[KeptLine]) -> int:
    """Count the items that at least one model has done: the first model does all of them before the second."""
    return max(Counter(line.model for line in lines).values())


def _as_line(line: KeptLine) -> bytes:
    content = line.model_dump_json().encode()
    return sha256(content).hexdigest().encode() + b" " + content + b"\n"
