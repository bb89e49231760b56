"""Refuses JSON objects in which a key stands twice, because readers of JSON keep the last value without a word."""

from collections.abc import Sequence
from typing import Any


class RepeatedKeyError(ValueError):
    """A key stands twice in one object of a JSON text."""

    def __init__(self, key: str) -> None:
        # The repr hides control characters; a long key may be a text.
        super().__init__(f"the key {key[:80]!r} stands twice in one object")


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return one object of a JSON text: the `object_pairs_hook` of Python's `json`.

    Raises:
        RepeatedKeyError: If a key stands twice; the message names it.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return found
