"""Rows of text files: JSON lines, a JSON array, comma- and tab-separated values, plain text, standard input.

Each reader yields `Row`s with all columns of the source; `reading` chooses text, id and group.
"""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ltmia.data.json_array import array_objects, is_array
from ltmia.data.json_keys import RepeatedKeyError, unique_keys
from ltmia.data.lines import MAX_TEXT_BYTES, Line, iterate_lines, open_bytes
from ltmia.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    place: str
    """Place in the source, such as `notes.csv, line 7`."""
    columns: Mapping[str, Any]


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines."""
    with open_bytes(path) as stream:
        yield from _json_rows(iterate_lines(stream, str(path)), str(path))


def array_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a `.json` file: a JSON array of objects, or JSON lines.

    Raises:
        DataError: If the file is neither, or an object is too long.
    """
    with open_bytes(path) as stream:
        found = is_array(stream)
    if not found:
        yield from json_rows(path)
        return
    with open_bytes(path) as stream:
        for place, record in array_objects(stream, str(path)):
            yield Row(place, record)


def plain_rows(path: Path) -> Iterator[Row]:
    """Yield one row for each line of a text file, blank lines included."""
    with open_bytes(path) as stream:
        yield from _plain_rows(iterate_lines(stream, str(path)), str(path))


def stream_rows(stream: BinaryIO, name: str) -> Iterator[Row]:
    """Yield rows of a stream: JSON lines if it begins with `{`, else one text per line."""
    lines = iterate_lines(stream, name)
    blank: list[Line] = []
    for line in lines:
        if line.text.isspace():
            blank.append(line)
            continue
        reader = _json_rows if line.text.lstrip().startswith("{") else _plain_rows
        yield from reader(itertools.chain(blank, [line], lines), name)
        return
    yield from _plain_rows(iter(blank), name)


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a comma-separated file with a header; blank lines are skipped.

    Raises:
        DataError: If quotes, header or the number of fields are wrong.
    """
    return _separated_rows(path, ",", "comma")


def tsv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a tab-separated file with a header, quoted as comma-separated ones are.

    Raises:
        DataError: If quotes, header or the number of fields are wrong.
    """
    return _separated_rows(path, "\t", "tab")


def _separated_rows(path: Path, separator: str, called: str) -> Iterator[Row]:
    with open_bytes(path) as stream:
        lines = (line.text for line in iterate_lines(stream, str(path)))
        records = separated_records(lines, str(path), separator, called)
        _, header = next(records, (1, []))
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(
                f"{path}, line 1: column {repeated[0]!r} occurs twice in the header. Give each column its own name."
            )
        for start, fields in records:
            place = f"{path}, line {start}"
            if len(fields) != len(header):
                raise DataError(
                    f"{place}: {len(fields)} fields, but the header has {len(header)}. Put texts "
                    f'that hold {called}s or line breaks in double quotes ("" for a quote inside).'
                )
            yield Row(place, dict(zip(header, fields, strict=True)))


def separated_records(lines: Iterator[str], name: str, separator: str, called: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not a blank line, with the line it starts on."""
    records = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        start = records.line_num + 1
        # The limit belongs to the csv module and is too low for texts: raised for this call only.
        previous = csv.field_size_limit(MAX_TEXT_BYTES)
        try:
            fields = next(records, None)
        except csv.Error as error:
            raise DataError(
                f"{name}, line {start}: not {called}-separated values ({error}). Put texts that hold "
                f'{called}s, quotes or line breaks in double quotes ("" for a quote inside).'
            ) from error
        finally:
            csv.field_size_limit(previous)
        if fields is None:
            return
        if fields:
            yield start, fields


def _plain_rows(lines: Iterator[Line], name: str) -> Iterator[Row]:
    for line in lines:
        text = line.text.removesuffix("\n").removesuffix("\r")
        yield Row(f"{name}, line {line.number}", {"text": text})


def _json_rows(lines: Iterator[Line], name: str) -> Iterator[Row]:
    for line in lines:
        if line.text and not line.text.isspace():
            place = f"{name}, line {line.number}"
            yield Row(place, _json_object(line.text, place))


def _json_object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}, column {error.colno}: not JSON ({error.msg}). "
            'Expected one object a line, such as {"id": "a1", "text": "..."}.'
        ) from error
    except RecursionError as error:
        raise DataError(
            f'{place}: JSON nested too deeply. Expected one flat object a line, such as {{"id": "a1", "text": "..."}}.'
        ) from error
    except RepeatedKeyError as error:
        raise DataError(f"{place}: {error}. Keep one of the two.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{place}: JSON value out of range ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: a JSON {type(value).__name__}, not an object. "
            'Expected one object a line, such as {"id": "a1", "text": "..."}.'
        )
    return value
