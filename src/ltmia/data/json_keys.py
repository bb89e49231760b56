"""Refuses JSON objects in which a key occurs twice, because readers of JSON keep the last value without a word."""

import json
from collections.abc import Sequence
from typing import Any

from ltmia.errors import DataError


class RepeatedKeyError(ValueError):
    """A key occurs twice in one object of a JSON text."""

    def __init__(self, key: str) -> None:
        # The repr hides control characters; a long key may be a text.
        super().__init__(f"the key {key[:80]!r} occurs twice in one object")


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return one object of a JSON text: the `object_pairs_hook` of Python's `json`.

    Raises:
        RepeatedKeyError: If a key occurs twice; the message names it.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return found


def refuse_repeated_keys(text: str, place: str) -> None:
    """Refuse a JSON text that pydantic has read, because pydantic keeps the last of two keys.

    Args:
        text: JSON.
        place: File and line, for the message.

    Raises:
        DataError: If a key occurs twice in one object.
    """
    try:
        json.loads(text, object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise DataError(f"{place}: {error}. Keep one of the two.") from None
