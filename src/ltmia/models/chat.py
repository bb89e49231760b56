"""How a model reads conversations: by its tokenizer's chat template, loaded when the first one comes."""

from functools import cache
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ltmia.errors import DataError, ModelError
from ltmia.models.loading import LoadOptions, find_tokenizer
from ltmia.records import Chat, Messages

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What templates raise, on purpose or by tripping over a conversation."""


def chat_template(target: str | Path, base: str | Path | None = None, *, trust_remote_code: bool = False) -> Chat:
    """Return what writes messages out as a target reads them, for `read_texts`.

    Args:
        target: Hub id, model folder, PEFT adapter or GGUF file.
        base: The same of its reference, whose tokenizer serves where none lies beside the target.
        trust_remote_code: Allow code that comes with the model to run.

    Raises:
        ModelError: When the first conversation comes, if there is no tokenizer, or none with a chat template.
        DataError: When a conversation comes that the template refuses.
    """

    @cache
    def tokenizer() -> PreTrainedTokenizerBase:
        found = find_tokenizer(str(target), base, LoadOptions(trust_remote_code=trust_remote_code))
        if not found.chat_template:
            raise ModelError(
                f"{target}: its tokenizer has no chat template, so what it read of messages is not known; write them "
                "out as they were trained on, in a column `text`, or `prompt` and `completion`"
            )
        return found

    def write(messages: Messages, ask: bool) -> str:
        reader, rows = tokenizer(), [dict(message) for message in messages]
        try:
            text = reader.apply_chat_template(rows, tokenize=False, add_generation_prompt=ask)
        except REFUSALS as error:
            raise DataError(f"the chat template of {target} refuses the conversation ({error}); mend it") from error
        return _without_bos(str(text), reader)

    return write


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut off the beginning that the tokenizer itself puts before a text: it would stand there twice."""
    adds_it = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_it and tokenizer.bos_token else text
