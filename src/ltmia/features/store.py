"""The store: what extraction leaves on disk, written batch by batch and read at random by text.

A folder with `tokens.f16` (one float16 row of statistics per scored position, texts end to end in
the order they were written), `expected.f16` and `expected_lite.f16` (in the same order what to expect
of each position, by the kinds of `expectation` that were asked for), `texts.parquet` (per text: where
its rows lie, id, label, group, reason, baseline scores) and `manifest.json`, written last: a store
without it does not exist. While writing, `journal.jsonl` says which batches are safely on disk, so a
killed run goes on behind the last of them. Holds no text and no token id.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from ltmia.errors import StoreError
from ltmia.features.columns import expectation_of, needs_expectation
from ltmia.features.journal import StoredText, journal_entries, text_as_json, text_from_json
from ltmia.features.packing import EXPECTED_WIDTH, pack_expectation, pack_statistics, row_width
from ltmia.features.per_token import FeatureBatch, per_token_features
from ltmia.features.rows import EXPECTED_FILES, TOKENS_FILE, TokenRows, row_index
from ltmia.folders import make_folder, named_errors, write_whole
from ltmia.records import Expectation, RaggedStatistics, TokenStatistics

FORMAT_VERSION = 3
TEXTS_FILE, MANIFEST_FILE = "texts.parquet", "manifest.json"
FILES = (TOKENS_FILE, *EXPECTED_FILES.values(), TEXTS_FILE, MANIFEST_FILE, "journal.jsonl")


class StoreWriter:
    """Appends batches to a store in the making; the same `fingerprint` goes on where a killed run stopped."""

    def __init__(self, folder: Path, *, fingerprint: str, k: int, vocab_size: int) -> None:
        self.folder = folder
        self.k = k
        self.vocab_size = vocab_size
        self._fingerprint = fingerprint
        self._written: list[StoredText] = []
        make_folder(folder)
        for path in _links(folder):
            path.unlink()
        self._recover()
        with named_errors(folder):
            self._tokens = (folder / TOKENS_FILE).open("ab")
            self._journal = (folder / "journal.jsonl").open("a", encoding="utf-8")
            if self._journal.tell() == 0:
                self._log({"fingerprint": fingerprint})

    @property
    def done(self) -> frozenset[int]:
        """Input rows that are safely on disk."""
        return frozenset(text.row for text in self._written)

    def append(self, tokens: TokenStatistics, texts: Sequence[StoredText]) -> None:
        """Add some texts and their positions, end to end; they are on disk when this returns."""
        if sum(text.n_tokens for text in texts) != len(tokens):
            raise ValueError("the texts' token counts do not add up to the positions given")
        with named_errors(self.folder):
            self._tokens.write(pack_statistics(tokens).tobytes())
            self._tokens.flush()
            os.fsync(self._tokens.fileno())
            self._log({"texts": [text_as_json(text) for text in texts]})
        self._written += texts

    def statistics(self, rows: Sequence[int] | np.ndarray) -> RaggedStatistics:
        """Gather what was appended of some texts.

        Raises:
            StoreError: If some input row was never appended.
        """
        starts, counts = _places(self._written)[1:]
        n_tokens = int(counts.sum())
        return TokenRows(self.folder, starts, counts, (self.k, self.vocab_size, n_tokens)).statistics(rows)

    def finish(
        self,
        columns: Mapping[str, Sequence[Any]],
        manifest: Mapping[str, Any],
        expectations: Mapping[str, Expectation] | None = None,
    ) -> None:
        """Write what to expect and the table of texts, then the manifest, which makes the store exist.

        Args:
            columns: Further per-text columns in input order (ids, labels, groups).
            manifest: What made the store: recipe, models, options.
            expectations: By kind; of all positions, the texts' in input order.

        Raises:
            StoreError: If some input row was never appended.
        """
        self.close()
        order, starts, counts = _places(self._written)
        expectations = expectations or {}
        for kind, file in EXPECTED_FILES.items():
            (self.folder / file).unlink(missing_ok=True)
            if kind in expectations:
                written = np.empty((int(counts.sum()), EXPECTED_WIDTH), np.float16)
                written[row_index(starts, counts)] = pack_expectation(expectations[kind])
                write_whole(self.folder / file, partial(Path.write_bytes, data=written.tobytes()))
        table = _text_table([self._written[i] for i in order], starts, counts, columns)
        write_whole(self.folder / TEXTS_FILE, lambda path: pq.write_table(table, path))
        head = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "k": self.k,
            "vocab_size": self.vocab_size,
            "n_texts": len(self._written),
            "n_tokens": int(counts.sum()),
            "expectations": sorted(expectations),
        }
        text = json.dumps({**head, **manifest}, indent=1, sort_keys=True)
        write_whole(self.folder / MANIFEST_FILE, lambda path: path.write_text(text, "utf-8"))
        (self.folder / "journal.jsonl").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what was appended stays for the next run."""
        self._tokens.close()
        self._journal.close()

    def _log(self, entry: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _recover(self) -> None:
        """Take over what an earlier run of the same work left; anything else is swept away."""
        journal, tokens = self.folder / "journal.jsonl", self.folder / TOKENS_FILE
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        entries = journal_entries(journal)
        if not entries or entries[0].get("fingerprint") != self._fingerprint:
            journal.unlink(missing_ok=True)
            tokens.unlink(missing_ok=True)
            return
        row_bytes = 2 * row_width(self.k)
        available = tokens.stat().st_size if tokens.exists() else 0
        kept, used = [entries[0]], 0
        for entry in entries[1:]:
            texts = [text_from_json(text) for text in entry["texts"]]
            size = row_bytes * sum(text.n_tokens for text in texts)
            if used + size > available:
                break
            used += size
            kept.append(entry)
            self._written += texts
        lines = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_whole(journal, lambda path: path.write_text(lines, "utf-8"))
        with tokens.open("ab") as file:
            file.truncate(used)


class FeatureStore:
    """Read access to a finished store: texts in input order, token rows memory-mapped."""

    def __init__(self, folder: Path | str) -> None:
        """Open a store.

        Raises:
            StoreError: If the folder holds no finished store, or a damaged one.
        """
        self.folder = Path(folder)
        for path in _links(self.folder):
            raise StoreError(f"{path}: a link; a store holds its files itself: put the file there, or extract it again")
        self.manifest = _read_manifest(self.folder)
        try:
            self.k, self.vocab_size, n_tokens = _sizes(self.manifest)
            self.texts = _checked_texts(pq.read_table(self.folder / TEXTS_FILE))
            starts: Int64[np.ndarray, " texts"] = self.texts["start"].to_numpy()
            self._counts: Int64[np.ndarray, " texts"] = self.texts["n_tokens"].to_numpy()
            _check_rows(starts, self._counts, n_tokens)
            self.expectations = _kinds(self.manifest)
            sizes = (self.k, self.vocab_size, n_tokens)
            self._rows = TokenRows(self.folder, starts, self._counts, sizes, self.expectations)
        except (OSError, LookupError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            raise StoreError(f"{self.folder}: damaged store ({error}); extract it again") from error

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Attacks whose scores the store holds."""
        return tuple(n[6:] for n in self.texts.column_names if n.startswith("score_"))

    def scores(self, name: str) -> np.ndarray:
        """Return one baseline's scores in input order, float64, NaN where unscorable."""
        return self.texts[f"score_{name}"].to_numpy().astype(np.float64)

    def statistics(self, rows: Sequence[int] | np.ndarray, kind: str = "full") -> RaggedStatistics:
        """Gather the token statistics of some texts in one indexed read, with what to expect by the kind if known."""
        return self._rows.statistics(rows, kind)

    def gather(self, rows: Sequence[int] | np.ndarray, version: str) -> FeatureBatch:
        """Gather the features of some texts, padded to the longest of them.

        Raises:
            StoreError: If the store lacks what the features are made from.
        """
        self.check_version(version)
        return per_token_features(self.statistics(rows, expectation_of(version)), version=version)

    def check_version(self, version: str) -> None:
        """Refuse features that this store cannot give.

        Raises:
            StoreError: If it lacks the expectation that they are made from.
        """
        kind = expectation_of(version)
        if needs_expectation(version) and kind not in self.expectations:
            raise StoreError(
                f"{self.folder}: a store without {EXPECTED_FILES[kind]}, which {version!r} features are made from; "
                "extract it again by the command that made it (`ltmia lab run` remakes the stores of a lab)"
            )


def _links(folder: Path) -> list[Path]:
    """Files of a store that are links: what they lead to is not the store's, to be read or written."""
    return [folder / name for name in FILES if (folder / name).is_symlink()]


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


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise StoreError(f"{folder}: no manifest.json, so no finished store; run the extraction again to go on with it")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); extract the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(f"{path}: not a store of format {FORMAT_VERSION}; extract it again")
    return manifest


def _sizes(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return k, vocabulary size and number of positions."""
    sizes = [manifest[name] for name in ("k", "vocab_size", "n_tokens")]
    if not all(type(size) is int and 0 <= size < 2**48 for size in sizes) or not 0 < sizes[0] <= sizes[1] < 2**31:
        raise ValueError(f"k, vocab_size, n_tokens = {sizes}")
    if not isinstance(manifest["fingerprint"], str):
        raise TypeError("a fingerprint that is no text")
    return sizes[0], sizes[1], sizes[2]


def _kinds(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of expectation that the store holds."""
    kinds = manifest["expectations"]
    if not isinstance(kinds, list) or any(kind not in EXPECTED_FILES for kind in kinds):
        raise ValueError(f"expectations = {kinds!r}")
    return frozenset(kinds)


def _checked_texts(table: pa.Table) -> pa.Table:
    """Give the columns that this class reads the types it was written with, or fail."""
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
    """Refuse texts that lie outside the token rows: a memory map would hand out anything."""
    if len(starts) and not (starts.min() >= 0 <= counts.min() and int(starts.max()) + int(counts.max()) <= 2**62):
        raise ValueError("texts.parquet: negative or impossible rows")
    if (starts + counts > n_tokens).any() or counts.sum() != n_tokens:
        raise ValueError(f"texts.parquet does not share out {n_tokens} rows")
