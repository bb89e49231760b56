"""The lines of a recording in the making: kept on disk batch by batch, in whatever order they come."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ltmia.data.recordings import RecordedText, as_line


class LinesFile:
    """The file they wait in until all are there. Opening it again goes on behind the last whole line."""

    def __init__(self, path: Path, rows: Mapping[str, int]) -> None:
        """Find the lines that are there, and cut away what a kill tore off.

        Args:
            path: The file; made where it is missing.
            rows: Row of each id that may stand in it.
        """
        self.places: dict[int, int] = {}
        """Where the line of each row begins."""
        self._file = path.open("a+b")
        self._file.seek(0)
        self._end = 0
        for line in self._file:
            try:
                row = rows[RecordedText.model_validate_json(line).id]
            except (ValueError, KeyError):
                break
            if not line.endswith(b"\n"):
                break
            self.places[row] = self._end
            self._end += len(line)
        self._file.truncate(self._end)

    def append(self, batch: Sequence[tuple[int, RecordedText]]) -> None:
        """Put the lines of some rows on disk."""
        for row, text in batch:
            self.places[row] = self._end
            self._end += self._file.write(as_line(text).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def in_order(self) -> Iterator[str]:
        """Yield the lines by row."""
        for _, place in sorted(self.places.items()):
            self._file.seek(place)
            yield self._file.readline().decode()

    def close(self) -> None:
        """Close the file; what was appended stays for the next run."""
        self._file.close()
