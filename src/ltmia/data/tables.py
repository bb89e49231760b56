"""Rows of Parquet files and Hugging Face datasets.

`datasets` is an extra (`hub`) and is imported only to read a dataset.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltmia.data.conversations import BESIDE_MESSAGES
from ltmia.data.rows import Row
from ltmia.errors import DataError

BATCH_ROWS = 256
"""Rows of a Parquet file decoded at a time."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A dataset of the Hugging Face hub as written on the command line."""

    name: str
    config: str | None
    split: str

    @classmethod
    def parse(cls, source: str) -> "HubName":
        """Read `hf:name[split]` or `hf:name:config[split]`.

        Raises:
            DataError: If the name has another form.
        """
        match = re.fullmatch(r"hf:([^:\[\]]+)(?::([^:\[\]]+))?\[(.+)\]", source)
        if match is None:
            raise DataError(
                f"{source}: expected hf:NAME[SPLIT] or hf:NAME:CONFIG[SPLIT], "
                "such as hf:imdb[test] or hf:glue:sst2[train]."
            )
        return cls(*match.groups())


def parquet_rows(path: Path, required: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a Parquet file: the columns named, `id`, and those that belong to messages, if there are any.

    Args:
        path: The file.
        required: Columns to read; when one is missing, a single row shows all names, with nulls.
        wanted: Other columns; at least one of them must exist.

    Raises:
        DataError: If the file is damaged or not a Parquet file.
    """
    row = 0
    try:
        metadata = pq.read_metadata(path)
        names = metadata.schema.to_arrow_schema().names
        columns = [name for name in dict.fromkeys([*wanted, *required, "id", *BESIDE_MESSAGES]) if name in names]
        if not set(required) <= set(columns) or not set(wanted) & set(columns):
            yield Row(f"{path}, row 1", dict.fromkeys(names))
            return
        _check_columns(path, names, columns)
        paths = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        flat = [name for name in columns if name in paths]  # not lists or structs
        # Dictionary arrays keep one copy of a repeated value: a tiny file cannot fill memory.
        with pq.ParquetFile(path, read_dictionary=flat) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                arrays = [batch.column(name) for name in columns]
                for values in zip(*arrays, strict=True):
                    row += 1
                    record = {n: v.as_py() for n, v in zip(columns, values, strict=True)}
                    yield Row(f"{path}, row {row}", record)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, row {row}: a text that is not UTF-8. Write it again.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an intact Parquet file ({_first_line(error)}).") from error


def saved_dataset_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of a dataset written by `save_to_disk`.

    Raises:
        DataError: If it cannot be loaded, or holds several splits.
    """
    datasets = _datasets(str(folder))
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{folder}: not an intact dataset folder ({_first_line(error)}). Write it again with save_to_disk."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = sorted(loaded)
        if len(splits) != 1:
            raise DataError(
                f"{folder}: holds the splits {', '.join(splits) or '(none)'}. "
                f"Name the folder of one, such as {folder / (splits or ['train'])[0]}."
            )
        loaded = loaded[splits[0]]
    return _dataset_rows(loaded, str(folder))


def hub_rows(name: HubName) -> Iterator[Row]:
    """Yield the rows of one split of a dataset of the hub, downloading it if it is not cached.

    Raises:
        DataError: If it cannot be loaded.
    """
    shown = f"hf:{name.name}" + (f":{name.config}" if name.config else "")
    datasets = _datasets(shown)
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        loaded = datasets.load_dataset(name.name, name.config, split=name.split)
    except failures as error:
        raise DataError(
            f"{shown}[{name.split}]: cannot be loaded ({_first_line(error)}). "
            "Check name, config and split, and that the machine is online or has it cached."
        ) from error
    return _dataset_rows(loaded, shown)


def is_saved_dataset(folder: Path) -> bool:
    """Say whether a folder looks like one written by `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _dataset_rows(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    for number, record in enumerate(rows, start=1):
        yield Row(f"{name}, row {number}", record)


def _datasets(source: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source}: reading datasets needs an extra. Run: pip install 'ltmia[hub]'") from error
    return datasets


def _check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        if names.count(name) > 1:
            raise DataError(f"{path}: two columns are named {name!r}. Give each its own name.")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
