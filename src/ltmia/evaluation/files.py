"""Reading and writing what an audit leaves, whole or not: `results.json`, `records.parquet`, `tokens.parquet`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from ltmia.errors import StoreError
from ltmia.evaluation.results import Results
from ltmia.evaluation.shown import one_line
from ltmia.folders import write_whole

RESULTS_FILE, RECORDS_FILE, TOKENS_FILE = "results.json", "records.parquet", "tokens.parquet"
GROUPS_FILE = "groups.parquet"
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
GROUP_TYPES: Mapping[str, pa.DataType] = {
    "group": pa.string(),
    "n_texts": pa.int64(),
    "n_compared": pa.int64(),
    "n_calibration": pa.int64(),
    "p_value": pa.float64(),
    "q_value": pa.float64(),
    "flagged": pa.bool_(),
}
"""Columns of the groups."""
TOKEN_TYPES: Mapping[str, pa.DataType] = {
    "row": pa.int64(),
    "difference": pa.list_(pa.float32()),
    "attribution": pa.list_(pa.float32()),
    "token": pa.list_(pa.string()),
}
"""Columns of the tokens; the last two may be missing."""
WITHOUT_GAPS = ("id", "n_tokens", "row", "n_texts")
"""Columns that say something of every record."""


def write_results(results: Results, folder: Path) -> None:
    """Write `results.json`; figures that could not be measured are null and carry their reason."""
    text = results.model_dump_json(indent=1) + "\n"
    write_whole(folder / RESULTS_FILE, lambda path: path.write_text(text, "utf-8"))


def read_results(folder: Path) -> Results:
    """Read `results.json`.

    Raises:
        StoreError: If it is missing or not of the published schema, naming the first wrong key.
    """
    path = folder / RESULTS_FILE
    try:
        text = path.read_text("utf-8")
        json.loads(text, object_pairs_hook=_no_key_twice)  # pydantic would keep the last of two
        return Results.model_validate_json(text, strict=True)
    except OSError as error:
        raise StoreError(f"{path}: not there; expected the folder of an audit or a score") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(f"{path}: {one_line(place)}: {first['msg']}; run the audit again") from error
    except (ValueError, RecursionError) as error:  # no JSON, not UTF-8, nested beyond reason
        raise StoreError(f"{path}: {error}; run the audit again") from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {one_line(twice[:80])!r} stands twice")
    return found


def write_records(columns: Mapping[str, Any], folder: Path) -> pa.Table:
    """Write `records.parquet`, one row per text in input order, and return the table."""
    return _write_table(columns, folder / RECORDS_FILE)


def write_groups(columns: Mapping[str, Any], folder: Path) -> pa.Table:
    """Write `groups.parquet`: one row per group judged as a whole, and return the table.

    Columns: `group` (salted hash, as in the records), `n_texts` (scorable texts), `n_compared` (texts of it, and of
    each calibration group, whose mean score was compared), `n_calibration` (calibration groups), `p_value`,
    `q_value`, `flagged`.
    """
    return _write_table(columns, folder / GROUPS_FILE)


def read_groups(folder: Path) -> pa.Table | None:
    """Read `groups.parquet`; None if there is none, as where the data have no groups.

    Raises:
        StoreError: If it is damaged.
    """
    path = folder / GROUPS_FILE
    return _read_table(path, GROUP_TYPES, tuple(GROUP_TYPES)) if path.exists() else None


def write_tokens(columns: Mapping[str, Any], folder: Path) -> pa.Table:
    """Write `tokens.parquet`: per-token numbers of some records, one row per record.

    Columns: `row` (of the record in `records.parquet`, from 0), `difference` (list: reference loss minus target loss of
    each scored token, nats), `attribution` (list: what each adds to the classifier's logit; only where one took
    part) and `token` (list of strings; only if the texts were revealed).
    """
    return _write_table(columns, folder / TOKENS_FILE)


def read_records(folder: Path) -> pa.Table:
    """Read `records.parquet`.

    Raises:
        StoreError: If it is missing or damaged.
    """
    return _read_table(folder / RECORDS_FILE, RECORD_TYPES, tuple(name for name in RECORD_TYPES if name != "text"))


def read_tokens(folder: Path) -> pa.Table | None:
    """Read `tokens.parquet`; None if there is none.

    Raises:
        StoreError: If it is damaged.
    """
    path = folder / TOKENS_FILE
    if not path.exists():
        return None
    table = _read_table(path, TOKEN_TYPES, ("row", "difference"))
    lists = [table[name] for name in TOKEN_TYPES if name != "row" and name in table.column_names]
    whole = all(not column.null_count and not pc.list_flatten(column).null_count for column in lists)
    if not whole or any(pc.list_value_length(column) != pc.list_value_length(lists[0]) for column in lists):
        raise StoreError(f"{path}: a record's lists have gaps or differ in length; run the audit again")
    return table


def _read_table(path: Path, types: Mapping[str, pa.DataType], required: tuple[str, ...]) -> pa.Table:
    try:
        return _checked(pq.read_table(path), types, required)
    except (OSError, ValueError, UnicodeDecodeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again") from error


def _checked(table: pa.Table, types: Mapping[str, pa.DataType], required: tuple[str, ...]) -> pa.Table:
    """Give the columns the types they were written with, or fail."""
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise ValueError(f"column {name[:80]!r} stands twice")
        kind = pa.float64() if name.startswith("score_") else types.get(name, table.schema.field(name).type)
        column = table[name].cast(kind)
        column.validate(full=True)  # strings are UTF-8, lists lie inside their values
        if name in WITHOUT_GAPS and column.null_count:
            raise ValueError(f"column {name!r} has gaps")
        table = table.set_column(table.column_names.index(name), name, column)
    if missing := [name for name in required if name not in table.column_names]:
        raise ValueError(f"no column {missing[0]!r}")
    return table


def _write_table(columns: Mapping[str, Any], path: Path) -> pa.Table:
    table = pa.table(dict(columns))
    write_whole(path, lambda part: pq.write_table(table, part))
    return table
