"""Records the token ids that a Trainer trained on, with their loss mask.

A preference pair, as `DPOTrainer` trains on, is one row: the chosen completion after its prompt, with the rejected one.
"""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ltmia.errors import ConfigError, StoreError
from ltmia.folders import named_errors, write_whole

WITHOUT_LOSS = -100
"""Label of a token without loss, in `transformers` and TRL."""
PAIR_MASK = "completion_mask"
"""Tensor of a batch of TRL's `DPOTrainer` that is 1 at the tokens of the completions, which have a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRow:
    """One sequence of tokens that attends only to itself."""

    ids: Int64[np.ndarray, " seq"]
    scored: Bool[np.ndarray, " seq"]
    """Whether each id had a loss; the first never has, because nothing predicts it."""
    rejected: "TrainedRow | None" = None
    """Prompt and rejected completion, if the row is a preference pair."""

    @property
    def key(self) -> str:
        """Hash of ids and loss mask, of both completions of a pair."""
        digest = sha256()
        for part in self.parts:
            digest.update(part.ids.astype("<i8").tobytes())
            digest.update(part.scored.tobytes())
        return digest.hexdigest()[:24]

    @property
    def parts(self) -> "list[TrainedRow]":
        """The row alone, or the chosen and the rejected part of a pair."""
        return [self] if self.rejected is None else [self, self.rejected]

    @property
    def all_ids(self) -> tuple[int, ...]:
        """The ids of all parts."""
        return tuple(int(i) for part in self.parts for i in part.ids)

    def counted(self) -> tuple[int, int]:
        """Return the number of tokens, and of tokens with loss."""
        return sum(len(part.ids) for part in self.parts), sum(int(part.scored.sum()) for part in self.parts)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each run of ids with loss."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.scored, [False]]).astype(np.int8)))
        return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def rows_of(batch: Mapping[str, Any]) -> Iterator[TrainedRow]:
    """Split a batch of the collator into sequences, or into preference pairs.

    Padding is left out. In packed rows, a new sequence begins where `position_ids` start again.

    Raises:
        ConfigError: If the batch has no `input_ids` and `labels`, and is none of preference pairs either.
    """
    if {"input_ids", PAIR_MASK} <= set(batch) and "labels" not in batch:
        yield from _pairs_of(batch)
        return
    if missing := [name for name in ("input_ids", "labels") if name not in batch]:
        raise ConfigError(
            f"AuditCallback: the batches have no {' and no '.join(missing)} (they have {', '.join(batch)}); it audits "
            "causal language models whose collator makes both, as DataCollatorForLanguageModeling does, and TRL's "
            "DPOTrainer"
        )
    names = [name for name in ("input_ids", "labels", "attention_mask", "position_ids") if batch.get(name) is not None]
    arrays = {name: batch[name].detach().cpu().numpy() for name in names}
    for i, ids in enumerate(arrays["input_ids"]):
        real = arrays["attention_mask"][i].astype(bool) if "attention_mask" in arrays else np.ones(len(ids), np.bool_)
        scored = arrays["labels"][i][real] != WITHOUT_LOSS
        begins = arrays["position_ids"][i][real] == 0 if "position_ids" in arrays else np.arange(len(scored)) == 0
        starts = sorted({0, *np.flatnonzero(begins).tolist()})
        for start, stop in pairwise([*starts, len(scored)]):
            mask = scored[start:stop].copy()
            mask[:1] = False
            if stop - start > 1:
                yield TrainedRow(ids=ids[real][start:stop].astype(np.int64), scored=mask)


def _pairs_of(batch: Mapping[str, Any]) -> Iterator[TrainedRow]:
    """Yield the pairs of a batch of TRL's `DPOTrainer`: first all chosen sequences, then the rejected ones."""
    ids, real, completion = (batch[name].detach().cpu().numpy() for name in ("input_ids", "attention_mask", PAIR_MASK))
    sequences = []
    for row, is_real, is_completion in zip(ids, real.astype(bool), completion.astype(bool), strict=True):
        scored = is_completion[is_real]
        scored[:1] = False
        sequences.append(TrainedRow(ids=row[is_real].astype(np.int64), scored=scored))
    half = len(sequences) // 2
    for chosen, rejected in zip(sequences[:half], sequences[half:], strict=True):
        yield replace(chosen, rejected=rejected)


@dataclass(slots=True)
class TrainedRows:
    """Distinct rows in the order in which they were first trained on, kept in a file that survives a kill."""

    file: Path
    rows: dict[str, TrainedRow] = field(default_factory=dict)
    steps: dict[int, list[str]] = field(default_factory=dict)
    """Keys of the rows of each step, in order."""

    @classmethod
    def open(cls, file: Path, *, step: int) -> "TrainedRows":
        """Read what a run recorded before the step from which training resumes; 0 starts from nothing.

        Raises:
            StoreError: If the file is damaged, or lacks steps before that one.
        """
        found = cls(file)
        if step:
            found._read(step)
        known: set[str] = set()
        lines = []
        for n, keys in sorted(found.steps.items()):
            lines.append(found._line(n, keys, known))
            known.update(keys)
        write_whole(file, lambda part: part.write_text("".join(lines), "utf-8"))
        return found

    def record(self, step: int, batch: Mapping[str, Any]) -> None:
        """Record a batch that will be trained on, as part of a step."""
        found = [(row.key, row) for row in rows_of(batch)]
        keys, rows = [key for key, _ in found], dict(found)
        known = self.rows.keys() & rows.keys()
        self.rows |= {key: row for key, row in rows.items() if key not in known}
        self.steps.setdefault(step, []).extend(keys)
        with named_errors(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(self._line(step, keys, known))

    def before(self, step: int) -> dict[str, TrainedRow]:
        """Return the rows that were trained on before a step, by key."""
        used = {key for n, keys in self.steps.items() if n < step for key in keys}
        return {key: row for key, row in self.rows.items() if key in used}

    def times_trained(self) -> Counter[str]:
        """Count how often each row was trained on."""
        return Counter(key for keys in self.steps.values() for key in keys)

    def _line(self, step: int, keys: Sequence[str], known: Container[str]) -> str:
        """Return a line for the rows of a step; new rows are given with their ids."""
        new = {key: self.rows[key] for key in keys if key not in known}
        told = {
            key: [values for part in row.parts for values in (part.ids.tolist(), np.flatnonzero(part.scored).tolist())]
            for key, row in new.items()
        }
        return json.dumps({"step": step, "rows": list(keys), "new": told}) + "\n"

    def _read(self, before: int) -> None:
        try:
            lines = self.file.read_text("utf-8").splitlines()
            told = [json.loads(line) for line in lines[:-1]] + _whole(lines[-1:])
            for line in told:
                for key, (ids, places, *pair) in line["new"].items():
                    rejected = _told_row(*pair) if pair else None
                    self.rows[key] = replace(_told_row(ids, places), rejected=rejected)
                self.steps.setdefault(line["step"], []).extend(line["rows"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StoreError(
                f"{self.file}: not readable ({error}); trained rows are not known: train from the beginning"
            ) from error
        self.steps = {n: keys for n, keys in self.steps.items() if n < before}
        self.rows = self.before(before)
        if missing := sorted(set(range(before)) - set(self.steps)):
            raise StoreError(
                f"{self.file}: training goes on from step {before}, but the rows of step {missing[0]} are not in "
                "this file: train from the beginning, or use the folder of the run that is resumed"
            )


def _told_row(ids: list[int], places: list[int]) -> TrainedRow:
    """Return a row from the lists in the file."""
    scored = np.zeros(len(ids), np.bool_)
    scored[places] = True
    return TrainedRow(ids=np.array(ids, np.int64), scored=scored)


def _whole(last: Sequence[str]) -> list[Any]:
    """Read the last line, which a killed run may have left half written."""
    try:
        return [json.loads(line) for line in last]
    except ValueError:
        return []
