"""The rows of a store's positions: where each text's lie, and random access to them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltmia.features.packing import EXPECTED_WIDTH, row_width, unpack_expectation, unpack_statistics
from ltmia.records import RaggedStatistics

TOKENS_FILE, EXPECTED_FILE = "tokens.f16", "expected.f16"


class TokenRows:
    """The rows of all texts, memory-mapped: statistics, and what to expect where that is known."""

    def __init__(
        self,
        folder: Path,
        starts: np.ndarray,
        counts: np.ndarray,
        sizes: tuple[int, int, int],
        spread: float | None = None,
    ) -> None:
        """Open the files.

        Args:
            folder: Of the store.
            starts: First row of each text.
            counts: Rows of each text.
            sizes: k, vocabulary size and number of rows.
            spread: Of the excess; None where nothing says what to expect.

        Raises:
            ValueError: If a file is not of the size that follows.
        """
        self._starts, self._counts = starts, counts
        self._k, self._vocab_size, n_rows = sizes
        self._spread = spread
        self._tokens = _mapped(folder / TOKENS_FILE, (n_rows, row_width(self._k)))
        self._expected = None if spread is None else _mapped(folder / EXPECTED_FILE, (n_rows, EXPECTED_WIDTH))

    def statistics(self, rows: Sequence[int] | np.ndarray) -> RaggedStatistics:
        """Gather those of some texts in one indexed read."""
        rows = np.asarray(rows, np.int64)
        counts = self._counts[rows]
        index = row_index(self._starts[rows], counts)
        expectation = None
        if self._expected is not None and self._spread is not None:
            expectation = unpack_expectation(np.asarray(self._expected[index]), self._spread)
        return RaggedStatistics(
            tokens=unpack_statistics(np.asarray(self._tokens[index]), self._k),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            vocab_size=self._vocab_size,
            expectation=expectation,
        )


def row_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rows of several texts, text by text."""
    offsets = np.cumsum(counts) - counts
    return np.repeat(starts - offsets, counts) + np.arange(int(counts.sum()))


def _mapped(path: Path, shape: tuple[int, int]) -> np.ndarray:
    if path.stat().st_size != 2 * shape[0] * shape[1]:
        raise ValueError(f"{path.name} does not hold {shape[0]} rows of {shape[1]} columns")
    return np.memmap(path, np.float16, "r", shape=shape) if shape[0] else np.zeros(shape, np.float16)
