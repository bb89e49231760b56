"""Reads which parts of the texts are secrets: places in named texts, or regular expressions that find them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltmia.data.json_keys import refuse_repeated_keys
from ltmia.data.lines import Line, iterate_lines, open_bytes
from ltmia.errors import DataError
from ltmia.records import Texts

RULE = re.compile(r"(?P<name>[A-Za-z0-9_-]{1,40}):[ \t]*(?P<expression>\S.*)")
"""A line of a file of regular expressions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a text that holds a secret: characters [start, end)."""

    row: int
    """Row of the text."""
    start: int
    end: int
    kind: str | None
    """Name of the kind of secret, such as "phone"; the user's own word."""


class _Place(BaseModel):
    """A line of a file of places; other keys, as tools write them, are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: str | int
    start: int = Field(ge=0)
    end: int
    kind: str | None = Field(None, max_length=40)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanFile:
    """The content of a file of spans: places, or regular expressions."""

    source: str
    places: tuple[tuple[int, _Place], ...] = ()
    """Each with the number of its line."""
    rules: tuple[tuple[str, re.Pattern[str]], ...] = ()
    """Names and expressions."""

    def check_ids(self, given: Sequence[Texts]) -> None:
        """Refuse places in texts that do not exist.

        Args:
            given: All sets of texts of the audit.

        Raises:
            DataError: If no text has the id of a place, or several have it; the message names the line.
        """
        counts = Counter(name for texts in given for name in texts.ids)
        for number, place in self.places:
            if counts[str(place.id)] != 1:
                found = "no text has" if not counts[str(place.id)] else "several texts have"
                raise DataError(
                    f"{self.source}, line {number}: {found} this id. Expected the id of one text; `id_column` names "
                    "the column of ids. Regular expressions need no ids."
                )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the expressions."""
        return tuple(name for name, _ in self.rules)

    def find(self, texts: Texts) -> list[Span]:
        """Return all that is named in some texts, also what is named twice.

        Places in other texts are left out: `check_ids` has found that these exist.

        Raises:
            DataError: If a place lies outside its text.
        """
        return [*self._placed(texts), *self._matching(texts)]

    def _placed(self, texts: Texts) -> Iterator[Span]:
        rows = {name: row for row, name in enumerate(texts.ids)}
        for number, place in self.places:
            row = rows.get(str(place.id))
            if row is None:
                continue
            if not place.start < place.end <= len(texts.texts[row]):
                raise DataError(
                    f"{self.source}, line {number}: start {place.start}, end {place.end} in a text of "
                    f"{len(texts.texts[row])} characters. Expected 0 <= start < end <= length: characters are counted "
                    "from 0, and the one at `end` is not part of the span."
                )
            yield Span(row=row, start=place.start, end=place.end, kind=place.kind)

    def _matching(self, texts: Texts) -> Iterator[Span]:
        for row, text in enumerate(texts.texts):
            for name, expression in self.rules:
                for start, end in _parts(expression, text):
                    yield Span(row=row, start=start, end=end, kind=name)


def distinct(spans: Iterable[Span]) -> list[Span]:
    """Return the spans by text and start; of a part that is named twice, the first span."""
    found: dict[tuple[int, int, int], Span] = {}
    for span in spans:
        found.setdefault((span.row, span.start, span.end), span)
    return [found[key] for key in sorted(found)]


def _parts(expression: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of what an expression finds: of its first group, or of all that it matches."""
    for match in expression.finditer(text):
        start, end = match.span(min(expression.groups, 1))
        if start < end:  # a group that took no part is at (-1, -1)
            yield start, end


def read_spans(path: Path | str) -> SpanFile:
    """Read a file of spans: JSON lines with `id`, `start`, `end` and perhaps `kind`, or lines `name: expression`.

    If an expression has a part in parentheses, the first such part is the span; otherwise the whole match is. Empty
    lines are skipped.

    Raises:
        DataError: If the file is empty, or a line is of neither kind; the message names it.
    """
    with open_bytes(Path(path)) as stream:
        lines = [line for line in iterate_lines(stream, str(path)) if line.text.strip()]
    if not lines:
        raise DataError(f"{path}: empty. Expected JSON lines with id, start and end, or lines `name: expression`.")
    if lines[0].text.lstrip().startswith("{"):
        return SpanFile(source=str(path), places=tuple((line.number, _place(path, line)) for line in lines))
    return SpanFile(source=str(path), rules=tuple(_rule(path, line) for line in lines))


def _place(path: Path | str, line: Line) -> _Place:
    try:
        found = _Place.model_validate_json(line.text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}, line {line.number}: {f'{key}: ' if key else ''}{first['msg']}. "
            'Expected {"id": "letter-17", "start": 24, "end": 30}, with "kind" if you like.'
        ) from None  # the message of pydantic would show the line
    refuse_repeated_keys(line.text, f"{path}, line {line.number}")
    return found


def _rule(path: Path | str, line: Line) -> tuple[str, re.Pattern[str]]:
    match = RULE.fullmatch(line.text.strip())
    if match is None:
        raise DataError(
            f"{path}, line {line.number}: expected a name, a colon and a regular expression, such as "
            r"`phone: \d{3}-\d{4}`"
        )
    try:
        return match["name"], re.compile(match["expression"])
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"{path}, line {line.number}: not a regular expression: {error}") from error
