"""Decodes the objects of a JSON array one at a time, so that the file is never in memory as a whole."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from ltmia.data.json_keys import RepeatedKeyError, unique_keys
from ltmia.data.lines import BYTE_ORDER_MARK, MAX_TEXT_BYTES, MAX_TOTAL_BYTES, refuse_utf16, too_large
from ltmia.errors import DataError

PIECE_BYTES = 2**16
"""Fewest bytes read at a time."""
BETWEEN = re.compile(r"[\s,]*")
"""Characters between two objects."""
DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
CUT_OFF = 16
"""An error this close to the end of the buffer may only mean that the rest has not been read yet."""


def is_array(stream: BinaryIO) -> bool:
    """Say whether a stream, read from its beginning on, starts with `[`."""
    return stream.read(PIECE_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def array_objects(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON array, each with its place in the file.

    Raises:
        DataError: If the text is not JSON, an item is not an object, or an item or the whole array is too long.
    """
    text = _ArrayText(stream, name)
    number = 1
    while (found := text.next_object(place := f"{name}, item {number}")) is not None:
        yield place, found
        number += 1


class _ArrayText:
    """Buffer of an array: text that was read and is not decoded yet."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._n_read = 0
        self._text, self._at = "", 0
        self._more()
        self._at = self._text.index("[") + 1

    def next_object(self, place: str) -> dict[str, Any] | None:
        """Decode the next object; None after the last one."""
        while True:
            self._at = _behind_gap(self._text, self._at)
            if self._at < len(self._text) and self._text[self._at] != "{":
                self._end(place)
                return None
            try:
                value, self._at = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._go_on(error, place)
            except RepeatedKeyError as error:
                raise DataError(f"{place}: {error}. Keep one of the two.") from error
            except (RecursionError, ValueError) as error:  # a number of thousands of digits
                raise DataError(f"{place}: JSON nested too deeply, or a value out of range ({error}).") from error
            else:
                return dict(value)

    def _go_on(self, error: json.JSONDecodeError, place: str) -> None:
        """Read more if an object may be cut off at the end of the buffer.

        Raises:
            DataError: If it is not cut off, or there is nothing more to read.
        """
        if len(self._text) - self._at > MAX_TEXT_BYTES:
            raise DataError(f"{place}: longer than {MAX_TEXT_BYTES // 2**20} MiB. Cut the text into passages.")
        inside = error.pos < len(self._text) - CUT_OFF and not error.msg.startswith("Unterminated")
        if inside or not self._more():
            raise DataError(f"{place}: not JSON ({error.msg}). Expected an array of objects, or one object a line.")

    def _end(self, place: str) -> None:
        rest = self._text[self._at :]
        if not rest.startswith("]"):
            raise DataError(f"{place}: not an object. Expected an array of objects, or one object a line.")
        if rest[1:].strip() or (self._more() and self._text.strip() != "]"):
            raise DataError(f"{place}: more text after the end of the array. Expected one array in the file.")

    def _more(self) -> bool:
        """Double the buffer; return whether there was anything to read."""
        raw = self._stream.read(max(PIECE_BYTES, len(self._text) - self._at))
        if not self._n_read:
            refuse_utf16(raw, self._name)
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        self._n_read += len(raw)
        if self._n_read > MAX_TOTAL_BYTES:
            raise DataError(too_large(self._name))
        try:
            new = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._name}: not UTF-8 (0x{error.object[error.start]:02x}). Save the file as UTF-8, for example "
                "with iconv."
            ) from error
        self._text, self._at = self._text[self._at :] + new, 0
        return bool(raw)


def _behind_gap(text: str, at: int) -> int:
    gap = BETWEEN.match(text, at)
    return at if gap is None else gap.end()
