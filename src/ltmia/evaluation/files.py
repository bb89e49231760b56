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
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again") from error


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.replace(path)
