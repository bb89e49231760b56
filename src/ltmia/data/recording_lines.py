"""The lines of an unfinished recording: written to disk batch by batch in any order, each with a hash."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from ltmia.data.recordings import RecordedText, as_line


class LinesFile:
    """File of the lines. When it is opened again, work continues after the last complete one."""

    def __init__(self, path: Path, rows: Mapping[str, int]) -> None:
        """Find the complete lines, and remove a last line that a kill cut off.

        Args:
            path: The file; made if it is missing.
            rows: Row of each id that the file may hold.
        """
        self.places: dict[int, int] = {}
        """Byte offset of the line of each row."""
        self.damage: str | None = None
        """Description of damage that a kill does not explain, and that was removed; None if there was none."""
        self._file = path.open("a+b")
        self._file.seek(0)
        self._end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                row = rows[RecordedText.model_validate_json(_checked(line)).id]
            except (ValueError, KeyError):
                self.damage = f"{path}: line {len(self.places) + 1} is not as it was written"
                break
            self.places[row] = self._end
            self._end += len(line)
        self._file.truncate(self._end)

    def append(self, batch: Sequence[tuple[int, RecordedText]]) -> None:
        """Write the lines of some rows to disk."""
        for row, text in batch:
            self.places[row] = self._end
            line = as_line(text).encode()
            self._end += self._file.write(_hash(line) + line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def in_order(self) -> Iterator[str]:
        """Yield the lines by row."""
        for _, place in sorted(self.places.items()):
            yield self._line(place)

    def spread(self, n: int, rows: Collection[int]) -> list[str]:
        """Return the lines of up to `n` of some rows, evenly spread over the order in which they were written."""
        places = sorted(self.places[row] for row in rows if row in self.places)
        picked = np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int)
        return [self._line(places[i]) for i in picked]

    def _line(self, place: int) -> str:
        self._file.seek(place)
        return _checked(self._file.readline()).decode()

    def sha256(self) -> str:
        """Hash the lines as a recording has them."""
        digest = sha256()
        for line in self.in_order():
            digest.update(line.encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file; what was appended stays for the next run."""
        self._file.close()


def _hash(line: bytes) -> bytes:
    """Return the prefix of a line: its hash."""
    return sha256(line).hexdigest().encode() + b" "


def _checked(hashed: bytes) -> bytes:
    """Return a line without its hash.

    Raises:
        ValueError: If the hash does not match the line.
    """
    line = hashed.partition(b" ")[2]
    if _hash(line) + line != hashed:
        raise ValueError("a line that does not fit its hash")
    return line
