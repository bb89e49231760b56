"""Loads a model's tokenizer, and compares two tokenizers id by id."""

import re
from importlib.metadata import version
from types import TracebackType

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.models.sources import MESSAGE_LIMIT, ModelSource, refuse_clearly

RESERVED = re.compile(r"\W*(?:reserved|unused|dummy|extra|control|placeholder)\w*\W*", re.IGNORECASE)
"""Pattern of reserved tokens that bases do not use, such as <unused7>, [control_8] or <|reserved_special_token_3|>."""


def read_tokenizer(source: ModelSource, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer that comes with a model.

    Raises:
        ModelError: If there is none, or it is damaged, or was written by a newer version of `tokenizers`.
    """
    keywords = source.keywords | {"trust_remote_code": trust_remote_code}
    with _NewerFormat(source):
        tokenizer = refuse_clearly(source, lambda: AutoTokenizer.from_pretrained(**keywords))
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.get_vocab():
        raise ModelError(f"{source.given}: its tokenizer has no tokens; put the base's tokenizer files beside it")
    return tokenizer


def compare_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Compare a target's tokenizer with its base's, id by id.

    Tokens that only one of the two has (added while fine-tuning) are allowed: they are outside the shared ids. Special
    and reserved tokens may have another name in the target, as in chat fine-tunes; a remark says so.

    Returns:
        A remark if tokens were renamed, else nothing.

    Raises:
        ModelError: If an ordinary id stands for different tokens; names the first such id.
    """
    other = {index: token for token, index in theirs.get_vocab().items()}
    pairs = ((index, token, other.get(index, token)) for token, index in ours.get_vocab().items())
    renamed = sorted((index, token, base) for index, token, base in pairs if token != base)
    for index, token, base in renamed:
        if not (_is_special(ours, index, token) and _is_special(theirs, index, base)):
            raise ModelError(
                f"target and base have different tokenizers: id {index} is {token!r} for the target and {base!r} "
                "for the base; their scores cannot be compared. Is this really the base it was fine-tuned from?"
            )
    if not renamed:
        return ()
    index, token, base = renamed[0]
    return (
        f"{len(renamed)} special or reserved token(s) bear another name than in the base, first id {index}: {token!r} "
        f"instead of {base!r}; texts are compared by ids",
    )


def _is_special(tokenizer: PreTrainedTokenizerBase, index: int, token: str) -> bool:
    return index in tokenizer.added_tokens_decoder or RESERVED.fullmatch(token) is not None


class _NewerFormat:
    """Turns what `tokenizers` raises on a file it does not understand, a bare `Exception`, into a `ModelError`.

    Exceptions of any kind of their own pass.
    """

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def __enter__(self) -> None:
        """Watch the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise ModelError(
                f"{self._source.given}: tokenizer.json is not understood by tokenizers {version('tokenizers')} "
                f"({str(error)[:MESSAGE_LIMIT]}); it was written by a newer version (pip install --upgrade tokenizers "
                "transformers), or is damaged"
            ) from error
