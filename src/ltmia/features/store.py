"""The store of an extraction on disk: written batch by batch, read by text in any order.

A folder with `tokens.f16` (one float16 row of statistics per scored position, texts end to end in the order they were
written), `expected.f16` and `expected_lite.f16` (in the same order the expectation of each position, for the kinds
that were asked for), `texts.parquet` (per text: where its rows lie, id, label, group, reason, baseline
scores) and `manifest.json`, written last, with the hashes of the others: a store without it does not exist. While
writing, `journal.jsonl` says which batches are safely on disk, so a killed run resumes after the last of them. A store
holds no text and no token id.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from ltmia.errors import StoreError
from ltmia.features.columns import expectation_of, needs_expectation
from ltmia.features.journal import JOURNAL_FILE, Journal, StoredText
from ltmia.features.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    check_files,
    file_sha256,
    read_manifest,
    write_manifest,
)
from ltmia.features.packing import EXPECTED_WIDTH, pack_expectation, pack_statistics, row_width
from ltmia.features.per_token import FeatureBatch, per_token_features
from ltmia.features.rows import EXPECTED_FILES, TOKENS_FILE, TokenRows, row_index
from ltmia.folders import make_folder, named_errors, write_whole
from ltmia.records import Expectation, RaggedStatistics, TokenStatistics

TEXTS_FILE = "texts.parquet"
FILES = (TOKENS_FILE, *EXPECTED_FILES.values(), TEXTS_FILE, MANIFEST_FILE, JOURNAL_FILE)


class StoreWriter:
    """Appends batches to an unfinished store; with the same `fingerprint`, it continues where a killed run stopped."""

    def __init__(self, folder: Path, *, fingerprint: str, k: int, vocab_size: int) -> None:
        self.folder = folder
        self.k = k
        self.vocab_size = vocab_size
        self._fingerprint = fingerprint
        make_folder(folder)
        for path in _links(folder):
            path.unlink()
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        with named_errors(folder):
            self._journal = Journal(
                folder / JOURNAL_FILE, folder / TOKENS_FILE, fingerprint=fingerprint, row_bytes=2 * row_width(k)
            )

    @property
    def done(self) -> frozenset[int]:
        """Input rows that are safely on disk."""
        return frozenset(text.row for text in self._journal.texts)

    @property
    def created(self) -> datetime:
        """Time when the work on the store began, which may have been in an earlier run."""
        return datetime.fromisoformat(self._journal.created)

    @property
    def damage(self) -> str | None:
        """Describes damage in an earlier run's files, which is removed; None if there is none."""
        return self._journal.damage

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds spent on models and on statistics for everything on disk, earlier runs included."""
        forward, features = self._journal.seconds
        return float(forward), float(features)

    def append(
        self, tokens: TokenStatistics, texts: Sequence[StoredText], seconds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Append some texts and their concatenated positions; they are on disk when this returns.

        Args:
            tokens: Statistics of the positions.
            texts: Entry of each text.
            seconds: Seconds spent on models and on statistics.
        """
        if sum(text.n_tokens for text in texts) != len(tokens):
            raise ValueError("the texts' token counts do not add up to the positions given")
        with named_errors(self.folder):
            self._journal.append(pack_statistics(tokens).tobytes(), texts, seconds)

    def statistics(self, rows: Sequence[int] | np.ndarray) -> RaggedStatistics:
        """Read the statistics of some texts that were appended.

        Raises:
            StoreError: If some input row was never appended.
        """
        starts, counts = _places(self._journal.texts)[1:]
        n_tokens = int(counts.sum())
        return TokenRows(self.folder, starts, counts, (self.k, self.vocab_size, n_tokens)).statistics(rows)

    def finish(
        self,
        columns: Mapping[str, Sequence[Any]],
        manifest: Mapping[str, Any],
        expectations: Mapping[str, Expectation] | None = None,
    ) -> None:
        """Write the expectations and the table of texts, then the manifest, which completes the store.

        Args:
            columns: Further per-text columns in input order (ids, labels, groups).
            manifest: Origin of the store: recipe, models, options.
            expectations: Expectation of all positions, by kind; texts in input order.

        Raises:
            StoreError: If some input row was never appended.
        """
        self.close()
        written = self._journal.texts
        order, starts, counts = _places(written)
        expectations = expectations or {}
        for kind, file in EXPECTED_FILES.items():
            (self.folder / file).unlink(missing_ok=True)
            if kind in expectations:
                rows = np.empty((int(counts.sum()), EXPECTED_WIDTH), np.float16)
                rows[row_index(starts, counts)] = pack_expectation(expectations[kind])
                write_whole(self.folder / file, partial(Path.write_bytes, data=rows.tobytes()))
        table = _text_table([written[i] for i in order], starts, counts, columns)
        write_whole(self.folder / TEXTS_FILE, lambda path: pq.write_table(table, path))
        head = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "created": self._journal.created,
            "seconds": self.seconds,
            "k": self.k,
            "vocab_size": self.vocab_size,
            "n_texts": len(written),
            "n_tokens": int(counts.sum()),
            "expectations": sorted(expectations),
            "files": {name: file_sha256(self.folder / name) for name in _hashed(expectations) if name != TOKENS_FILE}
            # Hash of what was appended: the file may have been damaged since.
            | {TOKENS_FILE: self._journal.rows_sha256.hexdigest()},
        }
        write_manifest(self.folder, {**head, **manifest})
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what was appended stays for the next run."""
        self._journal.close()


class FeatureStore:
    """Read access to a finished store: texts in input order, token rows memory-mapped."""

    def __init__(self, folder: Path | str) -> None:
        """Open a store, and compare its files with the hashes in its manifest.

        Raises:
            StoreError: If the folder holds no finished store, or a damaged one.
        """
        self.folder = Path(folder)
        for path in _links(self.folder):
            raise StoreError(f"{path}: a link; a store holds its files itself: put the file there, or extract it again")
        self.manifest = read_manifest(self.folder)
        try:
            self.expectations = _kinds(self.manifest)
            check_files(self.folder, self.manifest, _hashed(self.expectations))
            self.k, self.vocab_size, n_tokens = _sizes(self.manifest)
            self.texts = _checked_texts(pq.read_table(self.folder / TEXTS_FILE))
            starts: Int64[np.ndarray, " texts"] = self.texts["start"].to_numpy()
            self._counts: Int64[np.ndarray, " texts"] = self.texts["n_tokens"].to_numpy()
            _check_rows(starts, self._counts, n_tokens)
            sizes = (self.k, self.vocab_size, n_tokens)
            self._rows = TokenRows(self.folder, starts, self._counts, sizes, self.expectations)
            self.created = datetime.fromisoformat(self.manifest["created"])
            """Time when the work on it began."""
            forward, features = self.manifest.get("seconds", (0.0, 0.0))
            self.seconds = (abs(float(forward)), abs(float(features)))
            """Seconds spent on models and on statistics; zeros in older stores."""
        except (OSError, LookupError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            raise StoreError(f"{self.folder}: damaged store ({error}); extract it again") from error

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def sha256(self) -> str:
        """Hash of the store's content, without the manifest's notes on how the store was made."""
        return sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    @property
    def score_names(self) -> tuple[str, ...]:
        """Attacks whose scores the store holds."""
        return tuple(n[6:] for n in self.texts.column_names if n.startswith("score_"))

    def scores(self, name: str) -> np.ndarray:
        """Return one baseline's scores in input order, float64, NaN where unscorable."""
        return self.texts[f"score_{name}"].to_numpy().astype(np.float64)

    def statistics(self, rows: Sequence[int] | np.ndarray, kind: str = "full") -> RaggedStatistics:
        """Gather the token statistics of some texts in one read, with the expectation of a kind if there is one."""
        return self._rows.statistics(rows, kind)

    def gather(self, rows: Sequence[int] | np.ndarray, version: str) -> FeatureBatch:
        """Gather the features of some texts, padded to the longest of them.

        Raises:
            StoreError: If the store lacks statistics that the features need.
        """
        self.check_version(version)
        return per_token_features(self.statistics(rows, expectation_of(version)), version=version)

    def check_version(self, version: str) -> None:
        """Refuse a feature version that this store cannot provide.

        Raises:
            StoreError: If it lacks the expectation that the features need.
        """
        kind = expectation_of(version)
        if needs_expectation(version) and kind not in self.expectations:
            raise StoreError(
                f"{self.folder}: a store without {EXPECTED_FILES[kind]}, which {version!r} features are made from; "
                "extract it again by the command that made it (`ltmia lab run` remakes the stores of a lab)"
            )


def _links(folder: Path) -> list[Path]:
    """Return the store's files that are links, which must not be read or written through."""
    return [folder / name for name in FILES if (folder / name).is_symlink()]


def _hashed(kinds: Iterable[str]) -> list[str]:
    """Return the files whose hashes the manifest holds, for a store with these kinds of expectation."""
    return [TOKENS_FILE, TEXTS_FILE, *(EXPECTED_FILES[kind] for kind in sorted(kinds))]


def _places(written: Sequence[StoredText]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return, in input order, each text's place among those written, its first row and its number of rows.

    Raises:
        StoreError: If some input row is missing.
    """
    counts = np.array([text.n_tokens for text in written], np.int64)
    starts = np.cumsum(counts) - counts
    order = sorted(range(len(written)), key=lambda i: written[i].row)
    if [written[i].row for i in order] != list(range(len(written))):
        raise StoreError("rows are missing or doubled; the extraction is not complete")
    return order, starts[order], counts[order]


def _text_table(
    written: Sequence[StoredText], starts: np.ndarray, counts: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> pa.Table:
    table: dict[str, Any] = dict(columns)
    table["start"] = starts
    table["n_tokens"] = counts
    table["reason"] = pa.array([text.reason for text in written], pa.string())
    for name in written[0].scores if written else ():
        table[f"score_{name}"] = np.array([text.scores[name] for text in written], np.float64)
    return pa.table(table)


def _sizes(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return k, vocabulary size and number of positions."""
    sizes = [manifest[name] for name in ("k", "vocab_size", "n_tokens")]
    if not all(type(size) is int and 0 <= size < 2**48 for size in sizes) or not 0 < sizes[0] <= sizes[1] < 2**31:
        raise ValueError(f"k, vocab_size, n_tokens = {sizes}")
    if not isinstance(manifest["fingerprint"], str):
        raise TypeError("a fingerprint that is not a text")
    return sizes[0], sizes[1], sizes[2]


def _kinds(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of expectation that the store holds."""
    kinds = manifest["expectations"]
    if not isinstance(kinds, list) or any(kind not in EXPECTED_FILES for kind in kinds):
        raise ValueError(f"expectations = {kinds!r}")
    return frozenset(kinds)


def _checked_texts(table: pa.Table) -> pa.Table:
    """Cast the columns that this class reads to the types they were written with, or fail."""
    types = {"start": pa.int64(), "n_tokens": pa.int64(), "reason": pa.string()}
    types |= {name: pa.float64() for name in table.column_names if name.startswith("score_")}
    for name, kind in types.items():
        if table.column_names.count(name) != 1:
            raise ValueError(f"texts.parquet: {table.column_names.count(name)} columns are named {name}")
        if table[name].null_count and name != "reason":
            raise ValueError(f"texts.parquet: {name} has gaps")
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    return table


def _check_rows(starts: np.ndarray, counts: np.ndarray, n_tokens: int) -> None:
    """Refuse texts whose rows lie outside the file of token rows."""
    if len(starts) and not (starts.min() >= 0 <= counts.min() and int(starts.max()) + int(counts.max()) <= 2**62):
        raise ValueError("texts.parquet: negative or impossible rows")
    if (starts + counts > n_tokens).any() or counts.sum() != n_tokens:
        raise ValueError(f"texts.parquet does not share out {n_tokens} rows")
