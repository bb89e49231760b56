"""How a model reads conversations: by its tokenizer's chat template, loaded when the first one comes."""

import warnings
from collections.abc import Callable
from datetime import date, datetime, time
from functools import cache
from pathlib import Path
from unittest.mock import patch

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from ltmia.errors import DataError, ModelError
from ltmia.models.loading import LoadOptions, find_tokenizer
from ltmia.records import Messages

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What templates raise, on purpose or by tripping over a conversation."""


def chat_template(
    target: str | Path,
    base: str | Path | None = None,
    *,
    day: date | None = None,
    trust_remote_code: bool = False,
    allow_hub: bool = False,
) -> "ChatTemplate":
    """Return what writes messages out as a target reads them, for `read_texts`.

    Args:
        target: Hub id, model folder, PEFT adapter or GGUF file.
        base: The same of its reference, whose tokenizer serves where none lies beside the target.
        day: What a template is told that writes the day into conversations; None is today, with a warning, since the
            same texts read otherwise tomorrow.
        trust_remote_code: Allow code that comes with the model to run.
        allow_hub: Ask the hub for a base that only the target's files name.
    """
    options = LoadOptions(trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    load = cache(lambda: _tokenizer(target, base, options))
    return ChatTemplate(load, str(target), day)


class ChatTemplate:
    """Writes conversations out by the chat template of a target, loaded when the first one comes."""

    def __init__(self, tokenizer: Callable[[], PreTrainedTokenizerBase], target: str, day: date | None) -> None:
        self._tokenizer = tokenizer
        self._target = target
        self._day = day
        self.day_told: date | None = None
        """The day that stands in the conversations; None while no template asked for it."""

    def __call__(self, messages: Messages, ask: bool) -> str:
        """Write one conversation out; `ask` ends it with the beginning of an answer.

        Raises:
            ModelError: If there is no tokenizer, or none with a chat template.
            DataError: If the template refuses the conversation.
        """
        reader, rows = self._tokenizer(), [dict(message) for message in messages]
        try:
            # transformers takes no other clock: its templates ask `datetime.now()` of this module.
            with patch.object(chat_template_utils, "datetime", self):
                text = reader.apply_chat_template(rows, tokenize=False, add_generation_prompt=ask)
        except REFUSALS as error:
            raise DataError(
                f"the chat template of {self._target} refuses the conversation ({error}); mend it"
            ) from error
        return _without_bos(str(text), reader)

    def now(self) -> datetime:
        """Return the day that a template is told, at midnight; called by the template."""
        if self.day_told is None:
            self.day_told = self._day or datetime.now().astimezone().date()
            if self._day is None:
                warnings.warn(
                    f"the chat template of {self._target} writes the day into conversations and was told "
                    f"{self.day_told}: on another day the texts would differ. Name the day with `day`",
                    stacklevel=2,
                )
        return datetime.combine(self.day_told, time())


def _tokenizer(target: str | Path, base: str | Path | None, options: LoadOptions) -> PreTrainedTokenizerBase:
    found = find_tokenizer(str(target), base, options)
    if not found.chat_template:
        raise ModelError(
            f"{target}: its tokenizer has no chat template, so what it read of messages is not known; write them "
            "out as they were trained on, in a column `text`, or `prompt` and `completion`"
        )
    return found


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut off the beginning that the tokenizer itself puts before a text: it would stand there twice."""
    adds_it = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_it and tokenizer.bos_token else text
