"""Random access to the rows of a store, which hold the statistics of each position."""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ltmia.features.packing import EXPECTED_WIDTH, row_width, unpack_expectation, unpack_statistics
from ltmia.records import RaggedStatistics

TOKENS_FILE = "tokens.f16"
EXPECTED_FILES: Mapping[str, str] = {"full": "expected.f16", "lite": "expected_lite.f16"}
"""File of each kind of expectation, see `columns.EXPECTATIONS`."""


class TokenRows:
    """The rows of all texts, memory-mapped: statistics and expectations."""

    def __init__(
        self,
        folder: Path,
        starts: np.ndarray,
        counts: np.ndarray,
        sizes: tuple[int, int, int],
        expectations: Iterable[str] = (),
    ) -> None:
        """Open the files.

        Args:
            folder: Folder of the store.
            starts: First row of each text.
            counts: Rows of each text.
            sizes: k, vocabulary size and number of rows.
            expectations: Kinds of expectation in the store.

        Raises:
            ValueError: If a file has the wrong size.
        """
        self._starts, self._counts = starts, counts
        self._k, self._vocab_size, n_rows = sizes
        self._tokens = _MappedRows(folder / TOKENS_FILE, (n_rows, row_width(self._k)))
        self._expected = {
            kind: _MappedRows(folder / EXPECTED_FILES[kind], (n_rows, EXPECTED_WIDTH)) for kind in expectations
        }

    def statistics(self, rows: Sequence[int] | np.ndarray, kind: str = "full") -> RaggedStatistics:
        """Read the rows of some texts, with the expectation of a kind if there is one."""
        rows = np.asarray(rows, np.int64)
        counts = self._counts[rows]
        index = row_index(self._starts[rows], counts)
        expectation = unpack_expectation(self._expected[kind][index]) if kind in self._expected else None
        return RaggedStatistics(
            tokens=unpack_statistics(self._tokens[index], self._k),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            vocab_size=self._vocab_size,
            expectation=expectation,
        )


def row_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rows of several texts, text by text."""
    offsets = np.cumsum(counts) - counts
    return np.repeat(starts - offsets, counts) + np.arange(int(counts.sum()))


class _MappedRows:
    """Rows of float16 in a file, read through a memory map that leaves none of them in this process's memory."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        if path.stat().st_size != 2 * shape[0] * shape[1]:
            raise ValueError(f"{path.name} does not hold {shape[0]} rows of {shape[1]} columns")
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if shape[0] else None
        self._rows = np.frombuffer(self._map or b"", np.float16).reshape(shape)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        gathered = self._rows[index]
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            # The system keeps the rows cached, but rows that a process has read count as its memory, up to the whole
            # file.
            self._map.madvise(mmap.MADV_DONTNEED)
        return gathered
