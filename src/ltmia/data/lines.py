"""Reads the lines of a text file, compressed or not, or of a stream: with a size limit, strict decoding, and numbers.

This module handles bytes and encodings; `rows` interprets the lines.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ltmia.errors import DataError

MAX_TEXT_BYTES = 16 * 2**20
"""Largest line or text (16 MiB); a larger one is a wrong file or a decompression bomb."""
MAX_TOTAL_BYTES = 2**30
"""Largest number of bytes read from one source after decompression (1 GiB)."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
PACKED = (".gz", ".zst")
"""Endings of compressed files."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its line break, if it has one."""

    number: int
    text: str


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; decompress it if its name ends in `.gz` or `.zst`.

    Raises:
        DataError: If the file cannot be opened or read, or is a damaged compressed file.
    """
    ending = path.suffix.lower()
    try:
        with path.open("rb") as stream:
            if ending == ".gz":
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    yield unpacked  # type: ignore[misc]  # GzipFile reads like any binary stream
            elif ending == ".zst":
                with pa.CompressedInputStream(stream, "zstd") as frames, io.BufferedReader(frames) as unpacked:
                    yield unpacked
            else:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not an intact gzip file ({error}). Unpack it, or copy it again.") from error
    except OSError as error:
        if ending == ".zst" and not error.errno:
            raise DataError(f"{path}: not an intact zstd file ({error}). Unpack it, or copy it again.") from error
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def iterate_lines(stream: BinaryIO, name: str, *, kept: bool = True) -> Iterator[Line]:
    r"""Yield the lines of a UTF-8 stream, split at `\n` only; a byte order mark is left out.

    Args:
        stream: Read line by line, never as a whole.
        name: The source's name, for messages.
        kept: Whether the caller keeps the lines in memory; then their total size is limited too.

    Raises:
        DataError: If a line or the whole stream is too long, or bytes are not UTF-8.
    """
    total, number = 0, 0
    while raw := stream.readline(MAX_TEXT_BYTES + 1):
        number += 1
        total += len(raw)
        if len(raw) > MAX_TEXT_BYTES:
            raise DataError(
                f"{name}, line {number}: longer than {MAX_TEXT_BYTES // 2**20} MiB. "
                "Expected one text a line: cut it into passages."
            )
        if kept and total > MAX_TOTAL_BYTES:
            raise DataError(too_large(f"{name}, line {number}"))
        if number == 1:
            refuse_utf16(raw, f"{name}, line 1")
            raw = raw.removeprefix(BYTE_ORDER_MARK)
            if not raw:
                return
        yield Line(number, decode_utf8(raw, f"{name}, line {number}"))


def read_whole(path: Path, name: str) -> str:
    """Return the content of one small text file, line breaks unchanged, byte order mark left out.

    Raises:
        DataError: The file cannot be read, is too long, or is not UTF-8.
    """
    with open_bytes(path) as stream:
        raw = stream.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise DataError(
            f"{name}: longer than {MAX_TEXT_BYTES // 2**20} MiB. "
            "Expected one text in each file of the folder: cut it into passages."
        )
    refuse_utf16(raw, name)
    return decode_utf8(raw.removeprefix(BYTE_ORDER_MARK), name)


def refuse_utf16(raw: bytes, place: str) -> None:
    """Refuse a file in UTF-16, which could pass as UTF-8 with a NUL after each letter.

    Raises:
        DataError: If it begins with the byte order mark of UTF-16, or every second byte of the beginning is NUL.
    """
    start = raw[:64]
    halves = (start[0 : len(start) & ~1 : 2], start[1::2])
    if start.startswith(UTF_16_MARKS) or (len(start) >= 8 and any(not any(half) for half in halves)):
        raise DataError(f"{place}, byte 1: not UTF-8 but UTF-16. Write it again: iconv -f UTF-16 -t UTF-8 OLD > NEW")


def decode_utf8(raw: bytes, place: str) -> str:
    """Decode bytes as UTF-8.

    Raises:
        DataError: If they are not UTF-8; the message names the first wrong byte.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}, byte {error.start + 1}: not UTF-8 (0x{raw[error.start]:02x}). "
            "Save the file as UTF-8, for example with iconv."
        ) from error


def too_large(place: str) -> str:
    """Return the message for a source over `MAX_TOTAL_BYTES`."""
    return (
        f"{place}: more than {MAX_TOTAL_BYTES // 2**20} MiB of text so far. "
        "Split the file, or read its first rows only: read_texts(..., limit=N) in Python."
    )
