"""The journal of a store in the making: which texts are safely on disk, a line for each batch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredText:
    """What the store keeps of one text beside its token rows."""

    row: int
    """Place of the text in the input."""
    n_tokens: int
    """Scored positions; 0 for an unscorable text."""
    scores: Mapping[str, float]
    """Baseline scores by attack, NaN where unscorable."""
    reason: str | None = None
    """Why the text could not be scored."""


def text_as_json(text: StoredText) -> dict[str, Any]:
    """Return a text as a line of the journal holds it."""
    return {
        "row": text.row,
        "n_tokens": text.n_tokens,
        "reason": text.reason,
        "scores": dict(text.scores),
    }


def text_from_json(entry: Mapping[str, Any]) -> StoredText:
    """Take a text from a line of the journal.

    Raises:
        TypeError: If it is no such line.
    """
    row, n_tokens, scores, reason = entry["row"], entry["n_tokens"], entry["scores"], entry["reason"]
    whole = all(type(number) is int and number >= 0 for number in (row, n_tokens))
    numbers = isinstance(scores, Mapping) and all(type(score) is float for score in scores.values())
    if not (whole and numbers and isinstance(reason, str | None)):
        raise TypeError(f"no entry of a store's journal: row {row!r}")
    return StoredText(row=row, n_tokens=n_tokens, reason=reason, scores=scores)


def journal_entries(journal: Path) -> list[dict[str, Any]]:
    """Read the journal up to its first torn line."""
    entries: list[dict[str, Any]] = []
    if not journal.exists():
        return entries
    for line in journal.read_text("utf-8", errors="replace").split("\n")[:-1]:
        try:
            entry = json.loads(line)
            if entries:
                entry = {"texts": [text_as_json(text_from_json(text)) for text in entry["texts"]]}
            entries.append({**entry})
        except (ValueError, LookupError, TypeError, RecursionError):
            break
    return entries
