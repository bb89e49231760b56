"""Reads and writes the files of an audit: `results.json`, `records.parquet`, `private/tokens.parquet` and others.

Each file carries the id of the run that wrote it; files of two runs are refused.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from ltmia.data.json_keys import unique_keys
from ltmia.errors import StoreError
from ltmia.evaluation.audit_folder import (
    GROUPS_FILE,
    PREVIOUS_FOLDER,
    PRIVATE_FOLDER,
    RECORDS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SHAREABLE,
    SPANS_FILE,
    TOKENS_FILE,
    Run,
    last_run,
    refuse_other_run,
    why_no_results,
)
from ltmia.evaluation.results import Results
from ltmia.evaluation.shown import one_line
from ltmia.evaluation.token_bands import USUAL
from ltmia.folders import write_whole

RUN_KEY = b"ltmia_run"
"""Key of the run id in a Parquet file."""
RUN_IN_PAGE = re.compile(rb'<meta name="ltmia-run" content="([0-9a-f]*)">')
PAGE_HEAD = 4096
"""Number of bytes at the start of the report that contain its run id."""
RECORD_TYPES: Mapping[str, pa.DataType] = {
    "id": pa.string(),
    "label": pa.int64(),
    "group": pa.string(),
    "n_tokens": pa.int64(),
    "p_value": pa.float64(),
    "q_value": pa.float64(),
    "flagged": pa.bool_(),
    "reason": pa.string(),
    **dict.fromkeys(USUAL, pa.int64()),
    "strongest_third": pa.string(),
    "suffix_tokens": pa.int64(),
    "extractable_within": pa.int64(),
    "extractable_within_by_base": pa.int64(),
    "greedy_match": pa.bool_(),
    **dict.fromkeys(("longest_run", "longest_run_by_base"), pa.int64()),
    **dict.fromkeys(("edit_distance", "edit_distance_by_base"), pa.float64()),
    **dict.fromkeys(("continuation", "text"), pa.string()),
}
"""Columns of the records, without `score_ATTACK`."""
OPTIONAL = tuple(RECORD_TYPES)[tuple(RECORD_TYPES).index("suffix_tokens") :]
"""Columns that older files lack, or files without continuations or revealed texts."""
GROUP_TYPES: Mapping[str, pa.DataType] = {
    "group": pa.string(),
    "n_texts": pa.int64(),
    "n_compared": pa.int64(),
    "n_calibration": pa.int64(),
    "p_value": pa.float64(),
    "q_value": pa.float64(),
    "flagged": pa.bool_(),
    "n_flagged": pa.int64(),
    "n_extractable": pa.int64(),
    "strongest": pa.string(),
}
"""Columns of the groups; older files lack the last three."""
OLD_GROUP_COLUMNS = tuple(GROUP_TYPES)[:7]
TOKEN_TYPES: Mapping[str, pa.DataType] = {
    "row": pa.int64(),
    "difference": pa.list_(pa.float32()),
    "attribution": pa.list_(pa.float32()),
    "token": pa.list_(pa.string()),
}
"""Columns of the tokens; the last two may be missing."""
SPAN_TYPES: Mapping[str, pa.DataType] = {
    "id": pa.string(),
    "span": pa.int64(),
    "label": pa.int64(),
    "kind": pa.string(),
    "n_copies": pa.int64(),
    "exposure": pa.int64(),
    "exposure_by_base": pa.int64(),
    "reason": pa.string(),
    "value": pa.string(),
}
"""Columns of the secrets; the last one only with revealed texts."""
WITHOUT_GAPS = ("id", "n_tokens", "row", "n_texts", "span", "n_copies")
"""Columns without missing values."""


def write_results(results: Results, folder: Path) -> None:
    """Write `results.json`; figures that could not be measured are null and carry their reason."""
    sealed = results.model_copy(update={"content_sha256": _hash_of_rest(json.loads(results.model_dump_json()))})
    text = sealed.model_dump_json(indent=1) + "\n"
    write_whole(folder / RESULTS_FILE, lambda path: path.write_text(text, "utf-8"))


def read_results(folder: Path) -> Results:
    """Read `results.json`.

    Raises:
        StoreError: If it is missing, does not follow the published schema (the message names the first wrong key), was
            edited, or does not belong to the last run that began in its folder.
    """
    path = folder / RESULTS_FILE
    try:
        text = path.read_text("utf-8")
        tree = json.loads(text, object_pairs_hook=unique_keys)  # pydantic would keep the last of two keys
        results = Results.model_validate_json(text, strict=True)
    except OSError as error:
        raise StoreError(f"{path}: not there; {why_no_results(folder)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(f"{path}: {one_line(place)}: {first['msg']}; run the audit again") from error
    except (ValueError, RecursionError) as error:  # not JSON, a key twice, not UTF-8, or nested too deeply
        raise StoreError(f"{path}: {one_line(str(error))}; run the audit again") from error
    if run := last_run(folder):
        refuse_other_run(folder / PRIVATE_FOLDER / RUN_FILE, run["run_id"], results.run_id)
    if results.content_sha256 not in (None, _hash_of_rest(tree)):
        raise StoreError(
            f"{path}: content_sha256 does not match the rest of the file: damaged or edited; copy it again from where "
            "the audit wrote it, or run the audit again"
        )
    return results.model_copy(update={"content_sha256": None})


def _hash_of_rest(tree: Mapping[str, Any]) -> str:
    """Hash what a results file holds besides the hash, whatever the order of its keys and its white space."""
    rest = {name: value for name, value in tree.items() if name != "content_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_records(columns: Mapping[str, Any], folder: Path, run_id: str) -> pa.Table:
    """Write `records.parquet`, one row per text in input order, and return the table."""
    return _write_table(columns, folder / RECORDS_FILE, run_id)


def write_groups(columns: Mapping[str, Any], folder: Path, run_id: str) -> pa.Table:
    """Write `groups.parquet`: one row per group judged as a whole, and return the table.

    Columns: `group` (salted hash, as in the records), `n_texts` (scorable texts), `n_compared` (texts of it, and of
    each calibration group, whose mean score was compared), `n_calibration` (calibration groups), `p_value`,
    `q_value`, `flagged`; of its texts, `n_flagged`, `n_extractable` (within 1,000 draws, and not from the base) and
    `strongest` (id of the one with the highest score).
    """
    return _write_table(columns, folder / GROUPS_FILE, run_id)


def read_groups(folder: Path) -> pa.Table | None:
    """Read `groups.parquet`; None if there is none, as for data without groups.

    Raises:
        StoreError: If it is damaged.
    """
    path = folder / GROUPS_FILE
    return _read_table(path, GROUP_TYPES, OLD_GROUP_COLUMNS) if path.exists() else None


def write_spans(shareable: Mapping[str, Any], private: Mapping[str, Any], run: Run) -> None:
    """Write `spans.parquet`, one row per secret value, and `private/spans.parquet`, one per ranked value.

    Columns of the first: `id` and `span` (text, and number within it, of the first span with this value), `label` (of
    the text), `kind`, `n_copies` (spans with this value), `exposure` and `exposure_by_base` (bits, rounded up),
    `reason` (why it was not ranked) and `value` (only if the texts were revealed). Of the second: `row` (of the text,
    from 0), `start`, `end` (characters), and by target and base (`_by_base`) `logp` (of the span's tokens, nats),
    `n_better` (alternatives preferred to it), `exposure`, `low`, `high` (bits); `excess` (`logp` minus `logp_by_base`),
    `n_alternatives` and `bits` (log2 of the number of values of its form).
    """
    _write_table(shareable, run.folder / SPANS_FILE, run.run_id)
    _write_table(private, run.private.path / SPANS_FILE, run.run_id)


def forget_spans(run: Run) -> None:
    """Delete the exact figures on secrets of an earlier run, which do not belong to this one."""
    for path in (run.private.path / SPANS_FILE, run.private.ranks):
        path.unlink(missing_ok=True)


def read_spans_table(folder: Path) -> pa.Table | None:
    """Read `spans.parquet`; None if there is none, as for an audit without spans.

    Raises:
        StoreError: If it is damaged.
    """
    path = folder / SPANS_FILE
    return _read_table(path, SPAN_TYPES, tuple(SPAN_TYPES)[:-1]) if path.exists() else None


def write_tokens(columns: Mapping[str, Any], run: Run) -> pa.Table:
    """Write `private/tokens.parquet`: per-token numbers of some records, one row per record.

    Columns: `row` (of the record in `records.parquet`, from 0), `difference` (list: reference loss minus target loss of
    each scored token, nats), `attribution` (list: what each adds to the classifier's logit; only where one took
    part) and `token` (list of strings; only if the texts were revealed).
    """
    return _write_table(columns, run.private.path / TOKENS_FILE, run.run_id)


def forget_revealed(run: Run) -> None:
    """Delete the results of the previous run, which were set aside, if they may show texts."""
    previous = run.private.path / PREVIOUS_FOLDER
    try:
        shows = "text" in pq.read_schema(previous / RECORDS_FILE).names
    except (OSError, pa.ArrowException):
        shows = True  # not known
    for name in SHAREABLE if shows else ():
        (previous / name).unlink(missing_ok=True)


def read_records(folder: Path) -> pa.Table:
    """Read `records.parquet`; `read_audit` also checks that it belongs to the results beside it.

    Raises:
        StoreError: If it is missing or damaged.
    """
    return _read_table(
        folder / RECORDS_FILE, RECORD_TYPES, tuple(name for name in RECORD_TYPES if name not in OPTIONAL)
    )


def read_audit(folder: Path) -> tuple[Results, pa.Table]:
    """Read results and records.

    Raises:
        StoreError: If one is missing or damaged, or if they are of two runs.
    """
    results, records = read_results(folder), read_records(folder)
    refuse_other_run(folder / RECORDS_FILE, run_of(records), results.run_id)
    return results, records


def read_tokens(folder: Path) -> pa.Table | None:
    """Read `private/tokens.parquet`; None if there is none, as after passing on the public files only.

    Raises:
        StoreError: If it is damaged.
    """
    path = folder / PRIVATE_FOLDER / TOKENS_FILE
    if not path.exists():
        return None
    table = _read_table(path, TOKEN_TYPES, ("row", "difference"))
    lists = [table[name] for name in TOKEN_TYPES if name != "row" and name in table.column_names]
    whole = all(not column.null_count and not pc.list_flatten(column).null_count for column in lists)
    if not whole or any(pc.list_value_length(column) != pc.list_value_length(lists[0]) for column in lists):
        raise StoreError(f"{path}: a record's lists have gaps or differ in length; run the audit again")
    return table


def read_verdict(folder: Path) -> Results:
    """Read `results.json` for a verdict; tables and report beside it must belong to the same run.

    Raises:
        StoreError: If a file is damaged, or of another run.
    """
    results = read_results(folder)
    tables = [(RECORDS_FILE, read_records), (GROUPS_FILE, read_groups), (SPANS_FILE, read_spans_table)]
    for name, read in tables:
        if (folder / name).exists() and (table := read(folder)) is not None:
            refuse_other_run(folder / name, run_of(table), results.run_id)
    page = folder / REPORT_FILE
    if page.exists():
        with page.open("rb") as file:
            found = RUN_IN_PAGE.search(file.read(PAGE_HEAD))
        refuse_other_run(page, found[1].decode() if found else None, results.run_id)
    return results


def run_of(table: pa.Table) -> str | None:
    """Return the id of the run that wrote a table; None if it does not say."""
    found = (table.schema.metadata or {}).get(RUN_KEY)
    return None if found is None else found.decode("utf-8", "replace")


def _read_table(path: Path, types: Mapping[str, pa.DataType], required: tuple[str, ...]) -> pa.Table:
    try:
        return _checked(pq.read_table(path), types, required)
    except (OSError, ValueError, UnicodeDecodeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not readable ({error}); run the audit again") from error


def _checked(table: pa.Table, types: Mapping[str, pa.DataType], required: tuple[str, ...]) -> pa.Table:
    """Convert the columns to the types they were written with, or fail."""
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise ValueError(f"column {name[:80]!r} occurs twice")
        kind = pa.float64() if name.startswith("score_") else types.get(name, table.schema.field(name).type)
        column = table[name].cast(kind)
        column.validate(full=True)  # strings are UTF-8, lists lie inside their values
        if name in WITHOUT_GAPS and column.null_count:
            raise ValueError(f"column {name!r} has gaps")
        table = table.set_column(table.column_names.index(name), name, column)
    if missing := [name for name in required if name not in table.column_names]:
        raise ValueError(f"no column {missing[0]!r}")
    return table


def _write_table(columns: Mapping[str, Any], path: Path, run_id: str) -> pa.Table:
    table = pa.table(dict(columns)).replace_schema_metadata({RUN_KEY: run_id})
    write_whole(path, lambda part: pq.write_table(table, part))
    return table
