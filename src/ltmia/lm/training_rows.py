"""Texts as rows to fine-tune on: one text a row, its end marked, padded on the right.

Knows tokenizers; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ltmia.lm.training import IGNORED_LABEL, Row, ignore_first

ENCODE_AT_ONCE = 1000


class TokenRows(Dataset[Row]):
    """One row of ids per text."""

    def __init__(self, rows: Sequence[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": torch.tensor(self.rows[index])}


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
        ignore_first(labels)
        return {"input_ids": padded, "attention_mask": mask, "labels": labels}


def training_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Return the ids of each text that has a token, in order.

    The tokenizer's own special tokens, then EOS unless the text fills `max_length`. A text that is
    cut off gets none: it does not end there. A row of one id teaches nothing and is left out.
    """
    rows = []
    eos = tokenizer.eos_token_id
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    for start in range(0, len(clean), ENCODE_AT_ONCE):
        encoded = tokenizer(clean[start : start + ENCODE_AT_ONCE], return_special_tokens_mask=True, verbose=False)
        pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        for ids, special in pairs:
            row = list(ids[:max_length])
            if eos is not None and row[-1:] != [eos] and len(ids) < max_length:
                row.append(eos)
            if len(row) > 1 and not all(special):
                rows.append(row)
    return rows
