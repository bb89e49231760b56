"""Writes a canary as a row of the user's data: a text, a prompt and completion, or a conversation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ltmia.data.conversations import COMPLETION, MESSAGES, PROMPT, conversation, possible_columns
from ltmia.errors import DataError

Form = Literal["text", "completion", "messages"]
PROMPT_SHARE = 4
"""The first quarter of a canary is its prompt, where rows have one."""
ID = "id"


def form_of(rows: Iterable[Mapping[str, Any]], column: str, source: str) -> tuple[Form, Mapping[str, Any]]:
    """Return the form of a file's rows, by the first one with a text, and that row.

    Raises:
        DataError: If a canary cannot be written in their form.
    """
    possible = possible_columns(column)
    for row in rows:
        given = {name: row[name] for name in possible if row.get(name) is not None}
        if isinstance(given.get(column), str):
            return "text", row
        if isinstance(given.get(PROMPT), str) and isinstance(given.get(COMPLETION), str):
            return "completion", row
        if column not in given and conversation(given.get(MESSAGES), source):
            return "messages", row
        if given:
            break
    raise DataError(
        f"{source}: canaries cannot be written in the form of its rows. Expected texts, `prompt` and `completion` as "
        "texts, or `messages`; `text_column` names a column of texts."
    )


def columns_of(form: Form, column: str, text: str) -> dict[str, Any]:
    """Return the columns that hold the text of a canary."""
    if form == "text":
        return {column: text}
    cut = text.find(" ", len(text) // PROMPT_SHARE)
    cut = cut if cut > 0 else len(text) // PROMPT_SHARE  # a script without spaces
    if form == "completion":
        return {PROMPT: text[:cut], COMPLETION: text[cut:]}
    asked, answered = ({"role": "user", "content": text[:cut]}, {"role": "assistant", "content": text[cut:].strip()})
    return {MESSAGES: [asked, answered]}


def new_ids(like: Any, taken: Sequence[str], n: int, rng: np.random.Generator) -> list[Any]:
    """Return ids that no row has: whole numbers where `like`, the id of a row, is one, and else 16 hex digits."""
    if isinstance(like, int) or (isinstance(like, str) and like.isdecimal()):
        first = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
        return [number if isinstance(like, int) else str(number) for number in range(first, first + n)]
    used, found = set(taken), dict[str, None]()
    while len(found) < n:
        name = rng.bytes(8).hex()
        if name not in used:
            found[name] = None
    return list(found)
