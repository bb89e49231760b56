"""Chooses the reader for a file by its name, and lists the files of a folder of texts or of shards.

Hidden files are skipped; a line on standard error gives their number.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ltmia.data.lines import PACKED, read_whole
from ltmia.data.rows import Row, array_rows, csv_rows, json_rows, plain_rows, tsv_rows
from ltmia.data.tables import parquet_rows
from ltmia.errors import DataError

LINE_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": array_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".txt": plain_rows,
}
"""Reader for each file ending. Compressed files have an ending from `PACKED` after it."""
PARQUET = ".parquet"
SHARDS = (".jsonl", ".ndjson", ".csv", ".tsv", PARQUET)
"""Endings of files that may be shards in a folder; not `.json`, because files of settings also end in it."""
FORMATS = (
    ".jsonl, .ndjson, .json, .csv, .tsv or .txt, each also with .gz or .zst, .parquet, a folder of .txt files or "
    "of shards of one kind, hf:NAME[SPLIT] or -"
)
OF_THE_SYSTEM = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN"})
"""Files that operating systems create in folders and that are not hidden."""
SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.I)
"""Pattern of shard names on the hub."""
SPLIT = re.compile(
    r"(?<![a-z])(train(?:ing)?|test|val(?:id(?:ation)?)?|dev|eval|(?:held|hold)[-_. ]?out|(?:non[-_. ]?)?members?)"
    r"(?![a-z])",
    re.I,
)
"""Names of splits as parts of file names."""


def file_rows(path: Path, required: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of one file.

    Args:
        path: The file.
        required: Columns that every row must have.
        wanted: Columns that a text may come from; others of a Parquet file are not read.

    Raises:
        DataError: The file is of another kind, or damaged.
    """
    kind = kind_of(path)
    if kind == PARQUET:
        return parquet_rows(path, required, wanted)
    if kind is None:
        raise DataError(f"{path}: unknown kind of file. Expected {FORMATS}.")
    return LINE_READERS[kind](path)


def folder_rows(folder: Path, required: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a folder: one for each `.txt` file, in the order of the relative paths, or those of its shards.

    Args:
        folder: Holds, at any depth, `.txt` files, or files of one of the kinds `SHARDS`.
        required: See `file_rows`.
        wanted: See `file_rows`.

    Raises:
        DataError: If the folder holds neither, or several kinds or splits, or if a shard is missing or unreadable.
    """
    found = _visible_files(folder)
    kinds = sorted(kind for kind in found if kind == ".txt" or kind in SHARDS)
    if not kinds:
        raise DataError(
            f"{folder}: no .txt file in this folder, and no .parquet, .jsonl, .csv or .tsv. Expected a folder of "
            "these, a dataset saved with save_to_disk, or the path of one file."
        )
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds files of several kinds ({', '.join(kinds)}), and it is not known which of "
            "them are the texts. Name one file, or a folder with files of one kind."
        )
    paths = found[kinds[0]]
    _refuse_packed_twice(paths)
    if kinds[0] == ".txt":
        yield from (_text_row(folder, path) for path in paths)
        return
    _check_shards(folder, paths)
    for path in paths:
        yield from file_rows(path, required, wanted)


def _text_row(folder: Path, path: Path) -> Row:
    return Row(str(path), {"id": path.relative_to(folder).as_posix(), "text": read_whole(path, str(path))})


def kind_of(path: Path) -> str | None:
    """Return the ending that chooses the reader of a file; None if no reader fits."""
    endings = [suffix.lower() for suffix in path.suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    elif endings and endings[-1] == PARQUET:
        return PARQUET
    return endings[-1] if endings and endings[-1] in LINE_READERS else None


def _visible_files(folder: Path) -> dict[str | None, list[Path]]:
    """Return the files under a folder by kind, each kind in the order of the relative paths."""
    found: dict[str | None, list[Path]] = {}
    n_hidden = 0
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        kind = kind_of(path)
        if kind is None or not path.is_file():
            continue
        if any(name.startswith(".") or name in OF_THE_SYSTEM for name in path.relative_to(folder).parts):
            n_hidden += 1
        else:
            found.setdefault(kind, []).append(path)
    if n_hidden:
        logging.getLogger(__name__).warning("%s: left out %d hidden file(s)", folder, n_hidden)
    return found


def _refuse_packed_twice(paths: Sequence[Path]) -> None:
    """Refuse a folder with a file and its compressed copy, because each text would count twice.

    Raises:
        DataError: If there are both; the message names them.
    """
    there = set(paths)
    for path in paths:
        if path.suffix.lower() in PACKED and path.with_suffix("") in there:
            raise DataError(
                f"{path}: the folder also holds this file uncompressed, as {path.stem}. Remove one of the two."
            )


def _check_shards(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse shards of several splits, and incomplete sets of shards.

    Raises:
        DataError: If they are refused; the message names them.
    """
    places = sorted({path.parent.relative_to(folder).as_posix() for path in paths})
    matches = [SHARD.match(path.name) for path in paths]
    splits = sorted({match["split"] for match in matches if match})
    named = sorted({found[0].lower() for path in paths if (found := SPLIT.search(path.name))})
    for parts in (places, splits, named):
        if len(parts) > 1:
            raise DataError(
                f"{folder}: holds shards of {', '.join(parts)}. Name a folder with the shards of one split: "
                "texts of several splits must not be mixed."
            )
    counts = {int(match["count"]) for match in matches if match}
    there = {int(match["number"]) for match in matches if match}
    missing = [number for number in range(max(counts, default=0)) if number not in there]
    if missing or len(counts) > 1 or (counts and len(paths) != max(counts)):
        wrong = f"number {missing[0]:05d} is missing" if missing else "their names give another number of shards"
        raise DataError(
            f"{folder}: the {len(paths)} shards are not those of one whole set ({wrong}). Fetch the set again, "
            "or name a folder that holds all of it and nothing else."
        )
