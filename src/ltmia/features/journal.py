"""Files of an unfinished store: rows of statistics, and a journal with one line for each batch.

Each line has a hash over its texts, their rows and the previous line, so that a killed run continues after the last
undamaged batch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ltmia.folders import write_whole

JOURNAL_FILE = "journal.jsonl"
LINE_ERRORS = (ValueError, LookupError, TypeError, RecursionError, AttributeError)
"""Exceptions for a line that is not of a journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredText:
    """One text's entry in the store, besides its token rows."""

    row: int
    """Row of the text in the input."""
    n_tokens: int
    """Scored positions; 0 for an unscorable text."""
    scores: Mapping[str, float]
    """Baseline scores by attack, NaN where unscorable."""
    reason: str | None = None
    """Why the text could not be scored."""


class Journal:
    """The rows and the journal of one store; appends batches, and knows which are on disk."""

    def __init__(self, journal: Path, rows: Path, *, fingerprint: str, row_bytes: int) -> None:
        """Continue from what an earlier run of the same work left; remove everything else.

        Args:
            journal: File of the lines; made if it is missing.
            rows: File of the rows; made if it is missing.
            fingerprint: Hash of everything that decides the content.
            row_bytes: Size of a row.
        """
        self.texts: list[StoredText] = []
        """Texts on disk, in the order of their rows."""
        self.rows_sha256 = sha256()
        """Hash of their rows."""
        self.seconds = np.zeros(2)
        """Seconds spent on models and on statistics."""
        self.damage: str | None = None
        """Description of damage that a kill does not explain, and that was removed; None if there was none."""
        self._row_bytes = row_bytes
        self._head: dict[str, Any] = {
            "fingerprint": fingerprint,
            "row_bytes": row_bytes,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        kept = self._recover(journal, rows)
        if not kept:
            self._chain = _chained("", self._head, b"")
            kept = [_as_line(self._head | {"sha256": self._chain})]
        write_whole(journal, lambda path: path.write_bytes(b"".join(kept)))
        self._rows, self._lines = rows.open("ab"), journal.open("ab")
        self._rows.truncate(row_bytes * sum(text.n_tokens for text in self.texts))

    @property
    def created(self) -> str:
        """When the work on the store began, in UTC."""
        return str(self._head["created"])

    def append(self, rows: bytes, texts: Sequence[StoredText], seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        """Write the rows of some texts to disk, then their line, with the seconds of models and statistics."""
        written = [_text_as_json(text) for text in texts]
        self._chain = _chained(self._chain, [written, seconds], rows)
        for file, content in (
            (self._rows, rows),
            (self._lines, _as_line({"texts": written, "sha256": self._chain, "seconds": seconds})),
        ):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.rows_sha256.update(rows)
        self.texts += texts
        self.seconds += seconds

    def close(self) -> None:
        """Close both files; what was appended stays for the next run."""
        self._rows.close()
        self._lines.close()

    def _recover(self, journal: Path, rows: Path) -> list[bytes]:
        """Return the lines to continue after; empty if the journal belongs to other work."""
        if not journal.is_file():
            return []
        # What follows the last line break was cut off by a kill.
        lines = journal.read_bytes().split(b"\n")[:-1]
        head = _parsed(lines[0]) if lines else None
        if head is None:
            self.damage = f"{journal}: its first line is damaged" if lines else None
            return []
        found = {key: value for key, value in head.items() if key != "sha256"}
        self._chain = _chained("", found, b"")
        if head.get("sha256") != self._chain:
            self.damage = f"{journal}: its first line does not fit its hash"
            return []
        if any(found.get(key) != self._head[key] for key in ("fingerprint", "row_bytes")):
            return []
        self._head = found
        if not rows.is_file():
            rows.touch()
        with rows.open("rb") as file:
            n_kept = 1 + next((i for i, line in enumerate(lines[1:]) if not self._take(line, file)), len(lines) - 1)
        if n_kept < len(lines):
            self.damage = f"{journal}: line {n_kept + 1} does not fit its hash and its rows in {rows.name}"
        return [line + b"\n" for line in lines[:n_kept]]

    def _take(self, line: bytes, file: BufferedReader) -> bool:
        """Accept a line and its rows if both are undamaged."""
        entry = _parsed(line)
        try:
            texts = [_text_from_json(text) for text in entry["texts"]] if entry else []
            rows = file.read(
                min(self._row_bytes * sum(text.n_tokens for text in texts), os.fstat(file.fileno()).st_size)
            )
            seconds = np.array(entry["seconds"] if entry else (0.0, 0.0), np.float64)
            if (
                entry is None
                or seconds.shape != (2,)
                or entry["sha256"] != (chain := _chained(self._chain, [entry["texts"], entry["seconds"]], rows))
            ):
                return False
        except LINE_ERRORS:
            return False
        self._chain = chain
        self.rows_sha256.update(rows)
        self.texts += texts
        self.seconds += seconds
        return True


def _chained(before: str, said: Any, rows: bytes) -> str:
    digest = sha256(json.dumps([before, said]).encode())
    digest.update(rows)
    return digest.hexdigest()


def _as_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except LINE_ERRORS:
        return None
    return entry if isinstance(entry, dict) else None


def _text_as_json(text: StoredText) -> dict[str, Any]:
    """Return a text as part of a journal line."""
    return {
        "row": text.row,
        "n_tokens": text.n_tokens,
        "reason": text.reason,
        "scores": dict(text.scores),
    }


def _text_from_json(entry: Mapping[str, Any]) -> StoredText:
    """Take a text from a line of the journal.

    Raises:
        TypeError: If it is not such a line.
    """
    row, n_tokens, scores, reason = entry["row"], entry["n_tokens"], entry["scores"], entry["reason"]
    whole = all(type(number) is int and number >= 0 for number in (row, n_tokens))
    numbers = isinstance(scores, Mapping) and all(type(score) is float for score in scores.values())
    if not (whole and numbers and isinstance(reason, str | None)):
        raise TypeError(f"no entry of a store's journal: row {row!r}")
    return StoredText(row=row, n_tokens=n_tokens, reason=reason, scores=scores)
