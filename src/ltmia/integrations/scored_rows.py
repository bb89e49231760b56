"""Prepares rows that a Trainer trained on for scoring: the same ids, and only tokens that had a loss are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltmia.attacks.selection import slow_attacks
from ltmia.errors import ConfigError
from ltmia.integrations.trained_rows import TrainedRow
from ltmia.models.tokens import LEAST_IDS, EncodedText
from ltmia.records import Texts, rejected_id
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """Rows as texts for an audit: one for each run of tokens with loss, or each pair; tokens before are the prompt."""

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
    with_loss = {name: row for name, row in rows.items() if any(part.spans for part in row.parts)}
    pieces = [_Piece(f"{name}.{n}", name, row, span) for name, row in with_loss.items() for n, span in _spans(row)]
    rejected = [
        _Piece(rejected_id(piece.id), piece.row_name, piece.row.rejected, _whole_span(piece.row.rejected))
        for piece in pieces
        if piece.row.rejected is not None
    ]
    texts = _texts(pieces, tokenizer, groups)
    return ScoredRows(
        texts=replace(texts, rejected=_texts(rejected, tokenizer, None)) if rejected else texts,
        encoded={piece.id: _encoded(piece, vocab_size) for piece in (*pieces, *rejected)},
        n_without_loss=len(rows) - len(with_loss),
    )


class _Piece(NamedTuple):
    """A text to score: ids of a row from `span[0]` to `span[1]`, after the ids before them."""

    id: str
    row_name: str
    row: TrainedRow
    span: tuple[int, int]


def _spans(row: TrainedRow) -> list[tuple[int, tuple[int, int]]]:
    """Number the spans to score in a row; a pair has one, which is empty if truncation left nothing of a completion."""
    return list(enumerate(row.spans if row.rejected is None else [_whole_span(row)]))


def _whole_span(row: TrainedRow) -> tuple[int, int]:
    places = np.flatnonzero(row.scored)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (len(row.ids), len(row.ids))


def _texts(pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase, groups: Mapping[str, str] | None) -> Texts:
    def decoded(piece: _Piece, stop: int) -> str:
        return str(tokenizer.decode(piece.row.ids[:stop]))

    names = [piece.id for piece in pieces]
    return Texts(
        texts=tuple(decoded(piece, piece.span[1]) for piece in pieces),
        ids=tuple(names),
        made_ids=frozenset(names),
        groups=None if groups is None else tuple(groups[piece.row_name] for piece in pieces),
        starts=tuple(len(decoded(piece, piece.span[0])) if piece.span[0] > 1 else 0 for piece in pieces),
        source="Trainer",
    )


def _encoded(piece: _Piece, vocab_size: int) -> EncodedText:
    ids, start = piece.row.ids[: piece.span[1]], piece.span[0]
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
