"""Matches the recordings of two models text by text."""

from collections.abc import Collection, Iterator
from itertools import zip_longest

from ltmia.data.recordings import RecordedText, Recording
from ltmia.errors import DataError
from ltmia.records import Texts


def rows_by_id(texts: Texts) -> dict[str, int]:
    """Return the row of each id.

    Raises:
        DataError: If an id occurs twice.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(texts.ids):
        if rows.setdefault(name, row) != row:
            raise DataError(
                f"{texts.source}: the id {name[:80]!r} occurs twice, and recordings know texts by their ids; give each "
                "text its own"
            )
    return rows


def join_recordings(
    target: Recording, reference: Recording, names: Collection[str]
) -> Iterator[tuple[RecordedText, RecordedText]]:
    """Yield the lines of both recordings for each text; a line stays in memory until the other one is read.

    Args:
        target: Recording of the target.
        reference: Recording of the reference.
        names: Ids of the texts; other lines are skipped.

    Raises:
        DataError: If a text is missing in one of them.
    """
    waiting: tuple[dict[str, RecordedText], dict[str, RecordedText]] = ({}, {})
    n_joined = 0
    for lines in zip_longest(target, reference):
        for side, line in enumerate(lines):
            if line is None or line.id not in names:
                continue
            other = waiting[1 - side].pop(line.id, None)
            if other is None:
                waiting[side][line.id] = line
            else:
                n_joined += 1
                yield (other, line) if side else (line, other)
    if n_joined < len(names):
        raise DataError(_missing(target, names) or _missing(reference, names))


def _missing(recording: Recording, names: Collection[str]) -> str | None:
    found = {text.id for text in recording}
    missing = [name for name in names if name not in found]
    if not missing:
        return None
    return (
        f"{recording.path}: lacks {len(missing)} of the {len(names)} texts, such as {missing[0][:80]!r}. "
        "Texts are matched by id; those without one get it from all texts of their file, so record the very same "
        'files. For what cannot be recorded put a line that says so: {"id": ..., "tokens": [], "reason": "..."}'
    )
