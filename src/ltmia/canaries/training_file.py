"""Puts rows into a training file at given places. All other rows stay as they are, byte for byte in text files."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltmia.data.files import LINE_READERS, PARQUET, kind_of
from ltmia.data.json_array import is_array
from ltmia.data.lines import BYTE_ORDER_MARK, iterate_lines, open_bytes
from ltmia.data.rows import separated_records
from ltmia.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """The rows of a text file as they are written there."""

    path: Path
    kind: str
    """Ending that chooses the reader."""
    head: str
    """Header of a table; empty in other files."""
    rows: tuple[str, ...]
    line_break: str
    has_mark: bool
    """Whether the file begins with a byte order mark."""

    def __len__(self) -> int:
        return len(self.rows)

    def written(self, added: Sequence[Columns], places: Sequence[int], out: Path) -> None:
        """Write the file with added rows; `places[i]` is the index of added row i among all rows, rising."""
        own, there = iter(self.rows), dict(zip(places, added, strict=True))
        n_rows = len(self.rows) + len(added)
        pieces = [self._line(there[place]) if place in there else next(own) for place in range(n_rows)]
        pieces = [self.head, *pieces] if self.head else pieces
        whole = "".join(self._ended(piece) for piece in pieces[:-1]) + pieces[-1]
        content = (BYTE_ORDER_MARK if self.has_mark else b"") + whole.encode()
        if out.suffix.lower() == ".gz":
            content = gzip.compress(content, mtime=0)  # the same bytes each time
        elif out.suffix.lower() == ".zst":
            content = pa.compress(content, "zstd", asbytes=True)
        out.write_bytes(content)

    def _ended(self, piece: str) -> str:
        return piece if piece.endswith("\n") else piece + self.line_break

    def _line(self, columns: Columns) -> str:
        if self.kind == ".txt":
            return str(columns["text"]) + self.line_break
        if self.kind in SEPARATORS:
            line = io.StringIO()
            writer = csv.writer(line, delimiter=SEPARATORS[self.kind], lineterminator=self.line_break)
            writer.writerow(["" if value is None else value for value in columns.values()])
            return line.getvalue()
        return json.dumps(dict(columns), ensure_ascii=False) + self.line_break


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """The rows of a Parquet file."""

    path: Path
    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    def written(self, added: Sequence[Columns], places: Sequence[int], out: Path) -> None:
        """Write the file with added rows; `places[i]` is the index of added row i among all rows, rising.

        Raises:
            DataError: If a column can hold neither the value of an added row nor a null.
        """
        try:
            new = pa.Table.from_pylist([dict(columns) for columns in added], schema=self.table.schema)
            before = [place - i for i, place in enumerate(places)]  # own rows before each added one
            parts = [self.table.slice(0, before[0] if before else len(self.table))]
            for i, (start, stop) in enumerate(pairwise([*before, len(self.table)])):
                parts += [new.slice(i, 1), self.table.slice(start, stop - start)]
            pq.write_table(pa.concat_tables(parts), out)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(
                f"{self.path}: cannot hold rows of which only the text is known ({str(error).splitlines()[0][:200]}). "
                "Let its columns hold nulls, or give the texts as .jsonl."
            ) from error


def read_training_file(path: Path) -> TextFile | TableFile:
    """Read a training file row by row.

    Raises:
        DataError: If rows cannot be put into files of this kind, or it is damaged.
    """
    kind = kind_of(path) if path.is_file() else None
    if kind == PARQUET:
        try:
            return TableFile(path=path, table=pq.read_table(path, partitioning=None))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not an intact Parquet file ({str(error).splitlines()[0][:200]}).") from error
    if kind is None or kind not in LINE_READERS:
        raise DataError(
            f"{path}: rows cannot be put in here. Expected one file: .jsonl, .csv, .tsv or .txt, each also with .gz or "
            ".zst, or .parquet."
        )
    with open_bytes(path) as stream:
        if kind == ".json" and is_array(stream):
            raise DataError(f"{path}: a JSON array, into which no rows can be put. Give one object a line, as .jsonl.")
    with open_bytes(path) as stream:
        has_mark = stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK
    with open_bytes(path) as stream:
        lines = [line.text for line in iterate_lines(stream, str(path))]
    head, rows = "", tuple(lines)
    if kind in SEPARATORS:
        starts = [start - 1 for start, _ in separated_records(iter(lines), str(path), SEPARATORS[kind], "field")]
        cuts = [0, *starts[1:], len(lines)]  # blank lines belong to the record before them
        head, *records = ("".join(lines[start:stop]) for start, stop in pairwise(cuts))
        rows = tuple(records)
    line_break = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    return TextFile(path=path, kind=kind, head=head, rows=rows, line_break=line_break, has_mark=has_mark)


def first_rows(file: TextFile | TableFile, most: int = 1000) -> Iterator[Columns]:
    """Yield all columns of the first rows, as the readers of texts see them."""
    if isinstance(file, TableFile):
        yield from file.table.slice(0, most).to_pylist()
        return
    for number, row in enumerate(LINE_READERS[file.kind](file.path)):
        if number == most:
            return
        yield row.columns
