"""Reading and writing what an audit leaves: `results.json` and `records.parquet`, whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ltmia.errors import StoreError
from ltmia.evaluation.results import Results

RESULTS_FILE, RECORDS_FILE = "results.json", "records.parquet"
RECORD_TYPES: Mapping[str, pa.DataType] = {
    "id": pa.string(),
    "label": pa.int64(),
    "group": pa.string(),
    "n_tokens": pa.int64(),
    "p_value": pa.float64(),
    "q_value": pa.float64(),
    "flagged": pa.bool_(),
    "reason": pa.string(),
    "text": pa.string(),
}
"""Columns of the records beside `score_ATTACK`."""


def write_results(results: Results, folder: Path) -> None:
    """Write `results.json`; figures that could not be measured are null and carry their reason."""
    text = results.model_dump_json(indent=1) + "\n"
    _replace(folder / RESULTS_FILE, lambda path: path.write_text(text, "utf-8"))


def read_results(folder: Path) -> Results:
    """Read `results.json`.

    Raises:
        StoreError: If it is missing or not of the published schema, naming the first wrong key.
    """
    path = folder / RESULTS_FILE
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: not there; expected the folder of an audit or a score") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(f"{path}: {place}: {first['msg']}; run the audit again") from error


def write_records(columns: Mapping[str, Sequence[Any] | pa.Array], folder: Path) -> pa.Table:
    """Write `records.parquet`, one row per text in input order, and return the table."""
    table = pa.table(dict(columns))
    _replace(folder / RECORDS_FILE, lambda path: pq.write_table(table, path))
    return table


def read_records(folder: Path) -> pa.Table:
    """Read `records.parquet`.

    Raises:
        StoreError: If it is missing or damaged.
    """
    path = folder / RECORDS_FILE
    try:
        return _checked_records(pq.read_table(path))
    except (OSError, ValueError, UnicodeDecodeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again") from error


def _checked_records(table: pa.Table) -> pa.Table:
    """Give the columns the types they were written with, or fail."""
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise ValueError(f"column {name[:80]!r} stands twice")
        kind = pa.float64() if name.startswith("score_") else RECORD_TYPES.get(name, table.schema.field(name).type)
        column = table[name].cast(kind)
        if kind == pa.string():
            column.validate(full=True)  # UTF-8
        table = table.set_column(table.column_names.index(name), name, column)
    if missing := [name for name in ("id", "label", "n_tokens") if name not in table.column_names]:
        raise ValueError(f"no column {missing[0]!r}")
    return table


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.replace(path)
