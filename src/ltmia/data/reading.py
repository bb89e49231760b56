"""Reads texts, ids and groups from any source that the commands accept.

Rows keep their order and none is left out: a null becomes an empty text, which cannot be scored.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ltmia.data.conversations import TEXT, is_pair, missing, pair_of, possible_columns, text_of
from ltmia.data.files import FORMATS, file_rows, folder_rows
from ltmia.data.lines import MAX_TEXT_BYTES, MAX_TOTAL_BYTES, too_large
from ltmia.data.rows import Row, stream_rows
from ltmia.data.tables import (
    HubName,
    hub_rows,
    is_saved_dataset,
    saved_dataset_rows,
)
from ltmia.errors import ConfigError, DataError
from ltmia.records import Chat, Texts, hash_strings, rejected_id

MAX_TEXTS = 5_000_000
"""Largest number of texts read from one source, because all are held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns of text, id and group."""

    text: str = TEXT
    id: str | None = None
    """Column of ids; None: the column `id` if there is one."""
    group: str | None = None
    """Column of groups; None: the texts have no groups."""


def read_texts(
    source: str | Path,
    *,
    text_column: str = TEXT,
    id_column: str | None = None,
    group_column: str | None = None,
    limit: int | None = None,
    chat: Chat | None = None,
) -> Texts:
    """Read texts from a file, a folder, a dataset or standard input.

    Args:
        source: A `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.txt` file (one text a line), also with `.gz` or
            `.zst` added to its name; a `.parquet` file; a folder of `.txt` files (ids are their relative paths) or of
            shards of one kind and split; a folder written by `save_to_disk`; `hf:name:config[split]` for the hub; or
            `-` for standard input (JSON lines if it starts with `{`, else one text a line).
        text_column: Column of the texts. A null is an empty text. If `text` is missing, `messages` are read, or
            `prompt` and `completion`, of which only the completion is scored, or preference pairs: `chosen` and
            `rejected`, with or without a `prompt`.
        id_column: Column of the ids; by default `id` if there is one. A text without an id gets 16 hex digits,
            computed from it and all other texts; see `content_ids`.
        group_column: Column of the patient, author or document of each text.
        limit: Read the first rows only.
        chat: Renders messages as the target reads them, see `ltmia.chat_template`; without it messages are refused.

    Raises:
        DataError: If the source is missing, of an unknown format, damaged, empty or too large, or lacks a column.
        ConfigError: If `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: expected 1 or more, or none for all rows.")
    columns = Columns(text=text_column, id=id_column, group=group_column)
    name = "standard input" if str(source) == "-" else str(source)
    collected = _Collected(columns, chat)
    for row in islice(_rows(str(source), columns), limit):
        collected.add(row)
    if not collected.texts:
        raise DataError(f"{name}: holds no texts. Expected at least one row.")
    ids = _complete_ids(collected.texts, collected.ids)
    return Texts(
        texts=tuple(collected.texts),
        ids=ids,
        made_ids=frozenset(name for name, given in zip(ids, collected.ids, strict=True) if given is None),
        groups=None if group_column is None else tuple(collected.groups),
        starts=tuple(collected.starts) if any(collected.starts) else None,
        rejected=collected.rejected_texts(ids),
        source=name,
    )


def content_ids(texts: Sequence[str]) -> list[str]:
    """Return ids for texts that have none: 16 hex digits, with `-2`, `-3` after repeats.

    The hash is salted with all texts, so only someone who has all of them can compute the ids. The ids match texts with
    recordings and stores, and are not passed on; see `Texts.made_ids`.
    """
    whole = hashlib.sha256()
    hash_strings(whole, texts)
    salt = whole.digest()
    copies: Counter[str] = Counter()
    ids = []
    for text in texts:
        name = hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        copies[name] += 1
        ids.append(name if copies[name] == 1 else f"{name}-{copies[name]}")
    return ids


def _rows(source: str, columns: Columns) -> Iterator[Row]:
    if source == "-":
        return stream_rows(sys.stdin.buffer, "standard input")
    if source.startswith("hf:"):
        return hub_rows(HubName.parse(source))
    path = Path(source)
    if not _exists(path):
        raise DataError(f"{source}: no such file or folder. Expected {FORMATS}.")
    if path.is_dir() and is_saved_dataset(path):
        return saved_dataset_rows(path)
    required = [name for name in (columns.id, columns.group) if name is not None]
    read = folder_rows if path.is_dir() else file_rows
    return read(path, required, possible_columns(columns.text))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


@dataclass(slots=True)
class _Collected:
    """Columns collected from the rows so far."""

    columns: Columns
    chat: Chat | None
    texts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rejected: list[tuple[str, int]] = field(default_factory=list)
    """Rejected text of each preference pair, and the index of its first scored character."""
    ids: list[str | None] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Place of each of the user's ids."""
    size: int = 0

    def add(self, row: Row) -> None:
        text, start = self._text_of(row)
        _check_size(text, row)
        self.size += len(text) + (len(self.rejected[-1][0]) if self.rejected else 0)
        if self.size > MAX_TOTAL_BYTES:
            raise DataError(too_large(row.place))
        if len(self.texts) == MAX_TEXTS:
            raise DataError(
                f"{row.place}: more than {MAX_TEXTS:,} texts. "
                "Split the source, or read its first rows only: read_texts(..., limit=N) in Python."
            )
        self.ids.append(self._id_of(row))
        if self.columns.group is not None:
            self.groups.append(_label_of(row, self.columns.group, "group_column"))
        self.texts.append(text)
        self.starts.append(start)

    def _text_of(self, row: Row) -> tuple[str, int]:
        pair = is_pair(row, self.columns.text)
        if self.texts and pair != bool(self.rejected):
            raise DataError(
                f"{row.place}: {'a' if pair else 'no'} preference pair, unlike the rows before it. "
                "Expected `chosen` and `rejected` in every row or in none."
            )
        if not pair:
            return text_of(row, self.columns.text, self.chat)
        chosen, rejected = pair_of(row, self.chat)
        _check_size(rejected[0], row)
        self.rejected.append(rejected)
        return chosen

    def rejected_texts(self, ids: Sequence[str]) -> Texts | None:
        """Return the rejected texts of preference pairs, given the ids of the pairs; None if there are no pairs."""
        if not self.rejected:
            return None
        texts, starts = zip(*self.rejected, strict=True)
        return Texts(texts=texts, ids=tuple(map(rejected_id, ids)), starts=starts if any(starts) else None)

    def _id_of(self, row: Row) -> str | None:
        if self.columns.id is not None:
            name = _label_of(row, self.columns.id, "id_column")
        elif row.columns.get("id") not in (None, ""):
            name = _label_of(row, "id", "id_column")
        else:
            return None
        if name in self.places:
            raise DataError(
                f"{row.place}: the id {_shown(name)} was already used at {self.places[name]}. "
                "Give each text its own id, or name another column with `id_column`."
            )
        self.places[name] = row.place
        return name


def _check_size(text: str, row: Row) -> None:
    if len(text) > MAX_TEXT_BYTES:
        raise DataError(
            f"{row.place}: a text of {len(text):,} characters; at most {MAX_TEXT_BYTES:,} are read."
            " Cut it into passages."
        )


def _label_of(row: Row, column: str, option: str) -> str:
    """Return an id or a group: a text or a whole number, never empty, writable as UTF-8."""
    if column not in row.columns:
        raise DataError(missing(row, column, option))
    value = row.columns[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        shown = "an empty text" if value == "" else f"a {type(value).__name__}"
        raise DataError(
            f"{row.place}: column {column!r} holds {shown}. "
            f"Expected a text or a whole number in each row; name another column with `{option}`."
        )
    if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise DataError(
            f"{row.place}: column {column!r} holds half a surrogate pair, which no result file can hold. "
            "Write it again as UTF-8."
        )
    return value


def _shown(value: str) -> str:
    return repr(value[:80])


def _complete_ids(texts: Sequence[str], given: Sequence[str | None]) -> tuple[str, ...]:
    """Return the given ids, with ids made from the content for texts that have none."""
    taken = {name for name in given if name is not None}
    ids = []
    for made, name in zip(content_ids(texts), given, strict=True):
        chosen = made if name is None else name
        while name is None and chosen in taken:
            chosen += "-again"
        taken.add(chosen)
        ids.append(chosen)
    return tuple(ids)
