"""A row's text, or its prompt and completion, or its conversation, with the columns named as in TRL.

Of a completion the prompt is read but not scored, as it is not trained on either; a conversation is scored whole.
"""

from typing import Any

from ltmia.data.rows import Row
from ltmia.errors import DataError
from ltmia.records import Chat, Messages, shared_beginning

TEXT, PROMPT, COMPLETION, MESSAGES = "text", "prompt", "completion", "messages"


def possible_columns(column: str) -> tuple[str, ...]:
    """Return the columns that a text may come from: others stand in for the usual one only, never for one named."""
    return (TEXT, PROMPT, COMPLETION, MESSAGES) if column == TEXT else (column,)


def text_of(row: Row, column: str, chat: Chat | None) -> tuple[str, int]:
    """Return the text of a row and the character from which on it is scored.

    Args:
        row: Of a source.
        column: That of the texts. Where `text` is missing, `prompt` and `completion` or `messages` stand in.
        chat: Renders messages.

    Raises:
        DataError: None of them is there, or what is there is no text.
    """
    if column in row.columns:
        return _rendered(row, column, chat), 0
    there = [name for name in possible_columns(column) if name in row.columns]
    if PROMPT in there and COMPLETION in there:
        return _prompted(row, chat)
    if MESSAGES in there:
        return _rendered(row, MESSAGES, chat), 0
    others = f" Or give {PROMPT} and {COMPLETION}, or {MESSAGES}." if column == TEXT else ""
    raise DataError(missing(row, column, "--text-column") + others)


def missing(row: Row, column: str, option: str) -> str:
    """Say that a row lacks a column."""
    found = ", ".join(repr(name[:80]) for name in list(row.columns)[:20]) or "none"
    return f"{row.place}: no column {column!r}. Columns found: {found}. Name the right one with {option}."


def _prompted(row: Row, chat: Chat | None) -> tuple[str, int]:
    prompt, completion = row.columns[PROMPT], row.columns[COMPLETION]
    if not (_is_conversation(prompt) and _is_conversation(completion)):
        before, behind = _plain(row, PROMPT), _plain(row, COMPLETION)
        return before + behind, len(before)
    asked, whole = (
        _chatted(row, messages, chat, ask) for messages, ask in ((prompt, True), (prompt + completion, False))
    )
    # Where a template writes the beginning of an answer otherwise than it asks for one, the rest is scored.
    return whole, shared_beginning(asked, whole)


def _rendered(row: Row, column: str, chat: Chat | None) -> str:
    value = row.columns[column]
    return _chatted(row, value, chat, False) if _is_conversation(value) else _plain(row, column)


def _chatted(row: Row, messages: Messages, chat: Chat | None, ask: bool) -> str:
    if chat is None:
        raise DataError(
            f"{row.place}: holds messages, and without the target there is no chat template to write them out by. "
            "Give the target itself, or texts; in Python: read_texts(..., chat=chat_template(TARGET))."
        )
    try:
        return chat(messages, ask)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from error


def _plain(row: Row, column: str) -> str:
    value = row.columns[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{row.place}: column {column!r} holds a {type(value).__name__}. Expected a text, or messages with role "
            "and content; put a text in quotes, or name another column with --text-column."
        )
    return value


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )
