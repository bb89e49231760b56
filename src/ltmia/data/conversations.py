"""Reads the text of a row: a text, a prompt and completion, a preference pair, or a conversation.

The column names are those of TRL. A prompt is read but not scored, because fine-tuning does not train on it either; a
conversation is scored whole.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from ltmia.data.json_keys import RepeatedKeyError, unique_keys
from ltmia.data.rows import Row
from ltmia.errors import DataError
from ltmia.records import Chat, Messages, shared_beginning

TEXT, PROMPT, COMPLETION, MESSAGES = "text", "prompt", "completion", "messages"
CHOSEN, REJECTED = "chosen", "rejected"
TOOLS, TEMPLATE_OPTIONS = "tools", "chat_template_kwargs"
BESIDE_MESSAGES = (TOOLS, TEMPLATE_OPTIONS)
"""Columns that change what a chat template writes of the messages beside them."""
COLUMN_NAME = re.compile(r"[\w.:;|/-]{1,40}")
"""Pattern of column names. Other names are not shown, because the first line of a file without a header is a text."""


def possible_columns(column: str) -> tuple[str, ...]:
    """Return the columns that a text may come from; a column that the user named has no replacements."""
    return (TEXT, PROMPT, COMPLETION, CHOSEN, REJECTED, MESSAGES) if column == TEXT else (column,)


def text_of(row: Row, column: str, chat: Chat | None) -> tuple[str, int]:
    """Return the text of a row, and the index of its first scored character.

    Args:
        row: Row of a source.
        column: Column of the texts. If `text` is missing or null, `prompt` and `completion`, or `messages`, are used.
        chat: Renders messages.

    Raises:
        DataError: If none of these columns is there, or the value is not a text.
    """
    possible = possible_columns(column)
    given = {name for name in possible if row.columns.get(name) is not None}
    if column in given:
        return _rendered(row, column, chat), 0
    if given & {PROMPT, COMPLETION} and {PROMPT, COMPLETION} <= set(row.columns):
        return _prompted(row, COMPLETION, chat)
    if MESSAGES in given:
        return _conversed(row, chat), 0
    sources = [names for names in ((column,), (PROMPT, COMPLETION), (MESSAGES,)) if set(names) <= set(possible)]
    if any(set(names) <= set(row.columns) for names in sources):
        return "", 0  # the value is null
    others = f" Or give {PROMPT} and {COMPLETION}, {CHOSEN} and {REJECTED}, or {MESSAGES}." if column == TEXT else ""
    raise DataError(missing(row, column, "text_column") + others)


def is_pair(row: Row, column: str) -> bool:
    """Return whether a row is a preference pair: it has the columns `chosen` and `rejected`, and no other text."""
    return (
        column == TEXT
        and {CHOSEN, REJECTED} <= set(row.columns)
        and all(row.columns.get(name) is None for name in (TEXT, COMPLETION, MESSAGES))
    )


def pair_of(row: Row, chat: Chat | None) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the chosen and the rejected text of a preference pair, each with the index of its first scored character.

    Without a column `prompt`, what both texts have in common at the beginning is the prompt.

    Raises:
        DataError: If a value is neither a text nor messages.
    """
    if row.columns.get(PROMPT) is not None:
        return _prompted(row, CHOSEN, chat), _prompted(row, REJECTED, chat)
    texts = [_rendered(row, name, chat) for name in (CHOSEN, REJECTED)]
    start = shared_beginning(*texts)
    return (texts[0], start), (texts[1], start)


def missing(row: Row, column: str, option: str) -> str:
    """Return the error message for a row that lacks a column."""
    names = [name for name in row.columns if COLUMN_NAME.fullmatch(name)]
    found = ", ".join(map(repr, names[:20])) or "none"
    if hidden := len(row.columns) - len(names):
        found += f" and {hidden} whose names look like texts, so they are not shown: is there a header"
    return f"{row.place}: no column {column!r}. Columns found: {found}. Name the right one with `{option}`."


def _prompted(row: Row, column: str, chat: Chat | None) -> tuple[str, int]:
    prompt, completion = (conversation(row.columns[name], row.place) for name in (PROMPT, column))
    if prompt is None or completion is None:
        before, behind = _plain(row, PROMPT), _plain(row, column)
        return before + behind, len(before)
    asked, whole = (
        _chatted(row, messages, chat, ask) for messages, ask in ((prompt, True), ([*prompt, *completion], False))
    )
    # If the template formats an answer differently from the request for it, everything after the common prefix is
    # scored.
    return whole, shared_beginning(asked, whole)


def _conversed(row: Row, chat: Chat | None) -> str:
    value = row.columns[MESSAGES]
    messages = conversation(value, row.place)
    if messages is None:
        raise DataError(
            f"{row.place}: column {MESSAGES!r} holds a {type(value).__name__}. Expected messages with role and "
            "content, a list of objects, not JSON in a string. Name a column of plain texts with `text_column`."
        )
    return _chatted(row, messages, chat, False)


def _rendered(row: Row, column: str, chat: Chat | None) -> str:
    messages = conversation(row.columns[column], row.place)
    return _plain(row, column) if messages is None else _chatted(row, messages, chat, False)


def _chatted(row: Row, messages: Messages, chat: Chat | None, ask: bool) -> str:
    if chat is None:
        raise DataError(
            f"{row.place}: holds messages, and there is no chat template without the target. "
            "Give the target itself, or texts; in Python: read_texts(..., chat=chat_template(TARGET))."
        )
    if row.columns.get(TEMPLATE_OPTIONS):
        raise DataError(
            f"{row.place}: column {TEMPLATE_OPTIONS!r} changes what the chat template writes, and is not read here. "
            "Write the conversation out as it was trained on, in a column of plain texts."
        )
    try:
        return chat(messages, ask, _tools(row))
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


def _tools(row: Row) -> Sequence[Any] | None:
    """Return the descriptions of the tools that the conversation may use; None where there are none.

    Raises:
        DataError: They are no list, and no JSON of one.
    """
    value = row.columns.get(TOOLS)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value, object_pairs_hook=unique_keys)
        except RepeatedKeyError as error:
            raise DataError(f"{row.place}: column {TOOLS!r}: {error}. Keep one of the two.") from error
        except (ValueError, RecursionError):
            pass  # no JSON: refused below
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(
            f"{row.place}: column {TOOLS!r} holds a {type(value).__name__}. Expected a list of objects, or its JSON: "
            "the chat template writes it before the conversation."
        )
    return value


def _plain(row: Row, column: str) -> str:
    value = row.columns[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{row.place}: column {column!r} holds a {type(value).__name__}. Expected a text, or messages with role "
            "and content; put a text in quotes, or name another column with `text_column`."
        )
    return value


def conversation(value: Any, place: str) -> Messages | None:
    """Return the messages in a column, each content as one string; None if it holds no messages.

    A message that only calls tools has no content: the template gets None there, as in training.

    Args:
        value: Value of the column. A content may also be a list of parts, such as `{"type": "text", "text": "..."}`.
        place: Where it stands.

    Raises:
        DataError: If a content holds a part that is not text, such as an image.
    """
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        return None
    return [{**message, "content": _joined(message.get("content"), place)} for message in value]


def _is_message(value: Any) -> bool:
    if not (isinstance(value, dict) and isinstance(value.get("role"), str)):
        return False
    content = value.get("content")
    return isinstance(content, str | list) or (content is None and bool(value.get("tool_calls")))


def _joined(content: str | list[Any] | None, place: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{place}: a message with a part of type {str(kind)[:40]!r}. Only parts of type 'text' can be scored; "
                "leave the record out, or put the text that the model read into a column of its own."
            )
    return "".join(part["text"] for part in content)
