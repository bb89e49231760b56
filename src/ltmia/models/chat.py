"""Formats conversations with a model's chat template, which is loaded with the first one."""

import warnings
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from ltmia.errors import DataError, ModelError
from ltmia.models.loading import LoadOptions, find_tokenizer
from ltmia.records import Messages

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""Exceptions that chat templates raise, on purpose or because a conversation has a form they do not expect."""


def chat_template(
    target: str | Path,
    base: str | Path | None = None,
    *,
    day: date | None = None,
    trust_remote_code: bool = False,
    allow_hub: bool = False,
) -> "ChatTemplate":
    """Return a function that formats messages with the target's chat template, for `read_texts`.

    Args:
        target: Hub id, model folder, PEFT adapter or GGUF file.
        base: The same for its reference, whose tokenizer is used if the target has none.
        day: Date for templates that write the date into conversations. None: today, with a warning, because the same
        texts would be formatted differently tomorrow.
        trust_remote_code: Allow code that comes with the model to run.
        allow_hub: Ask the hub for a base that only the target's files name.
    """
    options = LoadOptions(trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    load = cache(lambda: _tokenizer(target, base, options))
    return ChatTemplate(load, str(target), day)


class ChatTemplate:
    """Formats conversations with the chat template of a target, which is loaded with the first one."""

    def __init__(self, tokenizer: Callable[[], PreTrainedTokenizerBase], target: str, day: date | None) -> None:
        self._tokenizer = tokenizer
        self._target = target
        self._day = day
        self.day_told: date | None = None
        """Date that was written into the conversations; None if the template did not ask for it."""

    def __call__(self, messages: Messages, ask: bool, tools: Sequence[Any] | None = None) -> str:
        """Format one conversation. With `ask`, it ends where the next answer begins.

        Args:
            messages: `role` and `content` of each.
            ask: Whether the next answer is asked for.
            tools: Descriptions of the tools that the model may call, as `apply_chat_template` takes them.

        Raises:
            ModelError: If there is no tokenizer, or none with a chat template.
            DataError: If the template refuses the conversation.
        """
        reader, rows = self._tokenizer(), [dict(message) for message in messages]
        try:
            # Templates of transformers call `datetime.now()` of this module; there is no other way to set the date.
            with patch.object(chat_template_utils, "datetime", self):
                text = reader.apply_chat_template(
                    rows, tools=None if tools is None else list(tools), tokenize=False, add_generation_prompt=ask
                )
        except REFUSALS as error:
            raise DataError(
                f"the chat template of {self._target} refuses the conversation ({error}); correct it"
            ) from error
        return _without_bos(str(text), reader)

    def now(self) -> datetime:
        """Return midnight of the date to use. The template calls this."""
        if self.day_told is None:
            self.day_told = self._day or datetime.now().astimezone().date()
            if self._day is None:
                warnings.warn(
                    f"the chat template of {self._target} writes the date into conversations and was given "
                    f"{self.day_told}: on another day the texts would differ. Set the date with `day`",
                    stacklevel=2,
                )
        return datetime.combine(self.day_told, time())


def _tokenizer(target: str | Path, base: str | Path | None, options: LoadOptions) -> PreTrainedTokenizerBase:
    found = find_tokenizer(str(target), base, options)
    if not found.chat_template:
        raise ModelError(
            f"{target}: its tokenizer has no chat template, so it is not known how it reads messages; write them "
            "as they were trained on, in a column `text`, or `prompt` and `completion`"
        )
    return found


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Remove the BOS token from the text. The tokenizer adds its own, so the text would have two."""
    adds_it = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_it and tokenizer.bos_token else text
