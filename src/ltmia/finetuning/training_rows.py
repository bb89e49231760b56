"""Texts as rows to fine-tune on: one text a row, its end marked, padded on the right.

Knows tokenizers; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ltmia.finetuning.training import IGNORED_LABEL, Row, ignore_first
from ltmia.models.tokens import prompt_lengths, tokenised_at_once
from ltmia.records import without_surrogates


@dataclass(frozen=True, slots=True)
class TextRow:
    """The ids of one text to train on."""

    ids: list[int]
    n_prompt: int = 0
    """Number of tokens at the start that are read but not learned, such as a prompt."""

    def __len__(self) -> int:
        return len(self.ids)

    def tensors(self) -> Row:
        """Return the row in the form that `RightPadding` takes."""
        return {"input_ids": torch.tensor(self.ids), "n_prompt": torch.tensor(self.n_prompt)}


class TokenRows(Dataset[Row]):
    """One row of ids per text."""

    def __init__(self, rows: Sequence[TextRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index].tensors()


@dataclass(frozen=True, slots=True)
class RightPadding:
    """Collates rows of unequal length: padding on the right, masked, without a label."""

    pad_id: int
    """Fills the empty places; any id does, since they are masked."""

    def __call__(self, rows: list[Row]) -> Row:
        """Return ids, mask and labels, each (batch, longest) int64."""
        ids = [row["input_ids"] for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
        padded = pad(ids, batch_first=True, padding_value=self.pad_id)
        # By the mask, not by the id: padding often is the EOS that a text must learn to end with.
        labels = padded.masked_fill(mask == 0, IGNORED_LABEL)
        for label, row in zip(labels, rows, strict=True):
            label[: int(row["n_prompt"])] = IGNORED_LABEL
        ignore_first(labels)
        return {"input_ids": padded, "attention_mask": mask, "labels": labels}


def training_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, starts: Sequence[int] | None = None
) -> list[TextRow]:
    """Return the ids of each text that has a token to learn, in order.

    A row has the tokenizer's own special tokens, and EOS at its end unless the text fills `max_length`. A text that is
    cut off gets no EOS, because it does not end there. A row of one id teaches nothing and is left out.

    Args:
        tokenizer: Tokenizer of the model.
        texts: Any strings.
        max_length: Largest number of ids of a text, its prompt included.
        starts: Character from which on each text is learned, see `Texts`.
    """
    rows = []
    eos = tokenizer.eos_token_id
    clean = [without_surrogates(text) for text in texts]
    for part in tokenised_at_once(len(clean)):
        encoded = tokenizer(clean[part], return_special_tokens_mask=True, verbose=False)
        lengths = prompt_lengths(tokenizer, clean[part], encoded["input_ids"], starts and starts[part])
        for ids, special, n_prompt in zip(encoded["input_ids"], encoded["special_tokens_mask"], lengths, strict=True):
            row = list(ids[:max_length])
            if eos is not None and row[-1:] != [eos] and len(ids) < max_length:
                row.append(eos)
            if len(row) > max(n_prompt, 1) and not all(special):
                rows.append(TextRow(row, n_prompt))
    return rows
