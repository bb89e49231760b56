"""Records the token ids that a Trainer trained on, with their loss mask, and prepares these rows for scoring."""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from transformers import PreTrainedTokenizerBase

from ltmia.attacks.selection import slow_attacks
from ltmia.errors import ConfigError, StoreError
from ltmia.folders import named_errors, write_whole
from ltmia.models.tokens import LEAST_IDS, EncodedText
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractionConfig

WITHOUT_LOSS = -100
"""Label of a token without loss, in `transformers` and TRL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRow:
    """One sequence of tokens that attends only to itself."""

    ids: Int64[np.ndarray, " seq"]
    scored: Bool[np.ndarray, " seq"]
    """Whether each id had a loss; the first never has, because nothing predicts it."""

    @property
    def key(self) -> str:
        """Hash of ids and loss mask."""
        digest = sha256(self.ids.astype("<i8").tobytes())
        digest.update(self.scored.tobytes())
        return digest.hexdigest()[:24]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each run of ids with loss."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.scored, [False]]).astype(np.int8)))
        return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def rows_of(batch: Mapping[str, Any]) -> Iterator[TrainedRow]:
    """Split a batch of the collator into sequences.

    Padding is left out. In packed rows, a new sequence begins where `position_ids` start again.

    Raises:
        ConfigError: If the batch has no `input_ids` and `labels`.
    """
    if missing := [name for name in ("input_ids", "labels") if name not in batch]:
        raise ConfigError(
            f"AuditCallback: the batches have no {' and no '.join(missing)} (they have {', '.join(batch)}); it audits "
            "causal language models whose collator makes both, as DataCollatorForLanguageModeling does"
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

    def times_trained(self) -> Counter[str]:
        """Count how often each row was trained on."""
        return Counter(key for keys in self.steps.values() for key in keys)

    def _line(self, step: int, keys: Sequence[str], known: Container[str]) -> str:
        """Return a line for the rows of a step; new rows are given with their ids."""
        new = {key: self.rows[key] for key in keys if key not in known}
        told = {key: [row.ids.tolist(), np.flatnonzero(row.scored).tolist()] for key, row in new.items()}
        return json.dumps({"step": step, "rows": list(keys), "new": told}) + "\n"

    def _read(self, before: int) -> None:
        try:
            lines = self.file.read_text("utf-8").splitlines()
            told = [json.loads(line) for line in lines[:-1]] + _whole(lines[-1:])
            for line in told:
                for key, (ids, places) in line["new"].items():
                    scored = np.zeros(len(ids), np.bool_)
                    scored[places] = True
                    self.rows[key] = TrainedRow(ids=np.array(ids, np.int64), scored=scored)
                self.steps.setdefault(line["step"], []).extend(line["rows"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StoreError(
                f"{self.file}: not readable ({error}); trained rows are not known: train from the beginning"
            ) from error
        self.steps = {n: keys for n, keys in self.steps.items() if n < before}
        used = {key for keys in self.steps.values() for key in keys}
        self.rows = {key: row for key, row in self.rows.items() if key in used}
        if missing := sorted(set(range(before)) - set(self.steps)):
            raise StoreError(
                f"{self.file}: training goes on from step {before}, but the rows of step {missing[0]} are not in "
                "this file: train from the beginning, or use the folder of the run that is resumed"
            )


def _whole(last: Sequence[str]) -> list[Any]:
    """Read the last line, which a killed run may have left half written."""
    try:
        return [json.loads(line) for line in last]
    except ValueError:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """Rows as texts for an audit: one text for each run of tokens with loss, after the tokens before it as prompt."""

    texts: Texts
    encoded: Mapping[str, EncodedText]
    """Token ids of each text, by id of the text."""
    n_without_loss: int
    """Number of rows without a token with loss."""


def scored_rows(
    rows: Mapping[str, TrainedRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    groups: Mapping[str, str] | None = None,
) -> ScoredRows:
    """Make texts from rows. A row with several runs of tokens with loss, such as answers, gives several texts.

    Args:
        rows: Rows by unique names.
        tokenizer: Decodes the texts, for attacks that read texts.
        vocab_size: Number of ids that both models know.
        groups: Group of each row, by the same names; None if there are none.
    """
    spans = [(name, row, n, span) for name, row in rows.items() for n, span in enumerate(row.spans)]
    names = [f"{name}.{n}" for name, _, n, _ in spans]
    encoded = {f"{name}.{n}": _encoded(row.ids[:stop], start, vocab_size) for name, row, n, (start, stop) in spans}
    texts = Texts(
        texts=tuple(str(tokenizer.decode(row.ids[:stop])) for _, row, _, (_, stop) in spans),
        ids=tuple(names),
        made_ids=frozenset(names),
        groups=None if groups is None else tuple(groups[name] for name, *_ in spans),
        starts=tuple(
            len(str(tokenizer.decode(row.ids[:start]))) if start > 1 else 0 for _, row, _, (start, _) in spans
        ),
        source="Trainer",
    )
    return ScoredRows(texts=texts, encoded=encoded, n_without_loss=sum(not row.spans for row in rows.values()))


def _encoded(ids: np.ndarray, start: int, vocab_size: int) -> EncodedText:
    least = LEAST_IDS["default"] - 1
    if len(ids) - start < least:
        return EncodedText(ids=ids, start=start, reason=f"{len(ids) - start} token(s) with loss: too few to score")
    if ids.max() >= vocab_size:
        return EncodedText(ids=ids, start=start, reason="a token is unknown to one of the two models")
    return EncodedText(ids=ids, start=start)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPair(LoadedPair):
    """A pair of models that scores texts with the token ids that were trained on."""

    encoded: Mapping[str, EncodedText]
    """Token ids of each text, by id of the text."""

    def refuse(self, attacks: Sequence[str], version: str | None, *, reveal: bool = False) -> None:  # noqa: ARG002  no version is
        """Refuse attacks that tokenise texts again.

        Raises:
            ConfigError: If an attack or option does so; the message names it.
        """
        if refused := [*slow_attacks(attacks), *(["reveal"] if reveal else [])]:
            raise ConfigError(f"{', '.join(refused)}: reads texts, not the tokens that were trained on; leave it out")

    def encode(self, texts: Texts, config: ExtractionConfig) -> list[EncodedText]:  # noqa: ARG002  none is cut
        """Return the ids of each text as they were trained on."""
        return [self.encoded[name] for name in texts.ids]
