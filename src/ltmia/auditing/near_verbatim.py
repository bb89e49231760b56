"""Continues the texts of an audit that stand out, and says how near the continuations come to the true ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.auditing.measured import Measured
from ltmia.auditing.question import Question
from ltmia.auditing.scored_sets import ScoredSets
from ltmia.auditing.text_sets import TextSets
from ltmia.evaluation.audit_folder import Run
from ltmia.evaluation.drawn_out import Nearness, NearVerbatim
from ltmia.extraction.nearness import edit_distance, longest_common_run
from ltmia.extraction.suffixes import SHORTEST_SUFFIX, suffix_of
from ltmia.models.tokens import EncodedText
from ltmia.progress import Report
from ltmia.records import without_surrogates
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.continuations import N_SAMPLED, CutText, continue_texts
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.kept_continuations import KeptContinuations


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """How near the continuations of one text by one model come to the true one; the nearest of them counts."""

    run: int
    """Longest common run, in tokens."""
    run_characters: int
    distance: float
    """Smallest edit distance in characters, as a share of the longer text."""
    nearest: str
    """The continuation with that distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuedTexts:
    """The texts that were continued: those to judge, then the non-members."""

    rows: Sequence[int]
    """Row of each text."""
    n_judged: int
    """Number of them that are to be judged."""
    longest_suffix: int
    n_flagged_left: int
    """Flagged texts that were not continued."""
    target: Sequence[Near]
    reference: Sequence[Near]


def continue_outstanding(
    pair: AuditedPair, question: Question, scored: ScoredSets, measured: Measured, run: Run, report: Report
) -> ContinuedTexts | None:
    """Continue the texts to judge that have the highest scores, and as many non-members; None if that is not wanted.

    The non-members are those with the highest scores, too: a high score alone makes a text likely, and so easy to
    continue. Each continuation is kept in the private folder as soon as it is written.
    """
    sets, config = question.sets, question.config
    if not config.continuations or pair.models is None:
        run.private.continuations.unlink(missing_ok=True)
        return None
    rows = _outstanding(sets, scored, measured, config.continuations)
    n_judged = sum(row < sets.n_judged for row in rows)
    encoded = pair.encode(sets.texts.take(rows), ExtractionConfig(max_length=question.max_length))
    texts = [_cut(text, prompted=_prompted(sets, row)) for row, text in zip(rows, encoded, strict=True)]
    kept = KeptContinuations(run.private.continuations, scored.identity.key)
    found = continue_texts(pair.models, texts, seed=config.seed, kept=kept, report=report)
    kept.finish(scored.texts.clock, report)
    flagged = measured.decisions.members.flagged & ~sets.repeats[: sets.n_judged]
    tokenizer = pair.models.tokenizer
    return ContinuedTexts(
        rows=rows,
        n_judged=n_judged,
        longest_suffix=max((len(text.suffix) for text in texts[:n_judged]), default=0),
        n_flagged_left=int(flagged.sum()) - int(flagged[rows[:n_judged]].sum()),
        target=[_near(tokenizer, text, one.target) for text, one in zip(texts, found, strict=True)],
        reference=[_near(tokenizer, text, one.reference) for text, one in zip(texts, found, strict=True)],
    )


def _outstanding(sets: TextSets, scored: ScoredSets, measured: Measured, most: int) -> list[int]:
    """Return the rows with the highest scores that have a suffix: texts to judge, then as many non-members."""
    scores = sets.once(measured.scores[measured.judge])
    usable = [
        row for row in np.argsort(-scores, kind="stable").tolist()
        if np.isfinite(scores[row]) and _has_suffix(int(scored.texts.n_tokens[row]), prompted=_prompted(sets, row))
    ]  # fmt: skip
    judged = [row for row in usable if row < sets.n_judged][:most]
    return judged + [row for row in usable if row >= sets.n_judged][: len(judged)]


def _has_suffix(n_scored: int, *, prompted: bool) -> bool:
    place = suffix_of(n_scored, prompted=prompted)
    return place.stop > place.start


def _prompted(sets: TextSets, row: int) -> bool:
    return sets.texts.starts is not None and sets.texts.starts[row] > 0


def _cut(text: EncodedText, *, prompted: bool) -> CutText:
    place = suffix_of(text.n_scored, prompted=prompted)
    return CutText(
        beginning=text.ids[: text.start + place.start],
        suffix=text.ids[text.start + place.start : text.start + place.stop],
    )


def _near(tokenizer: Any, text: CutText, written: Sequence[Sequence[int]]) -> Near:
    true_ids = text.suffix.tolist()
    true, *others = (str(tokenizer.decode(list(ids))) for ids in (true_ids, *written))
    distances = [edit_distance(other, true) for other in others]
    nearest = int(np.argmin(distances))
    return Near(
        run=max(longest_common_run(ids, true_ids) for ids in written),
        run_characters=max(longest_common_run(other, true) for other in others),
        distance=distances[nearest],
        nearest=others[nearest],
    )


def near_verbatim_of(found: ContinuedTexts | None) -> NearVerbatim | None:
    """Summarise both sides and both models."""
    if found is None:
        return None
    n = found.n_judged
    if not n:
        return NearVerbatim(reason=f"no text that was scored has a suffix of {SHORTEST_SUFFIX} tokens")
    new = [mine.run for mine, base in zip(found.target[:n], found.reference[:n], strict=True) if mine.run > base.run]
    return NearVerbatim(
        n_judged=n,
        n_nonmembers=len(found.rows) - n,
        n_flagged_left=found.n_flagged_left,
        n_continuations=1 + N_SAMPLED,
        longest_suffix=found.longest_suffix,
        longest_new_run=max(new, default=0),
        judged=_nearness(found.target[:n]),
        judged_by_base=_nearness(found.reference[:n]),
        nonmembers=_nearness(found.target[n:]),
        nonmembers_by_base=_nearness(found.reference[n:]),
    )


def _nearness(near: Sequence[Near]) -> Nearness | None:
    if not near:
        return None
    return Nearness(
        median_run=median(one.run for one in near),
        longest_run=max(one.run for one in near),
        median_run_characters=median(one.run_characters for one in near),
        longest_run_characters=max(one.run_characters for one in near),
        median_distance=median(one.distance for one in near),
        smallest_distance=min(one.distance for one in near),
    )


def continued_columns(found: ContinuedTexts | None, n_texts: int, *, reveal: bool) -> dict[str, Any]:
    """Lay out the columns of `records.parquet` about continuations; none if there are none, words only on request."""
    if found is None:
        return {}
    columns = {
        "longest_run": _column(found, n_texts, [one.run for one in found.target], pa.int64()),
        "longest_run_by_base": _column(found, n_texts, [one.run for one in found.reference], pa.int64()),
        "edit_distance": _column(found, n_texts, [one.distance for one in found.target], pa.float64()),
        "edit_distance_by_base": _column(found, n_texts, [one.distance for one in found.reference], pa.float64()),
    }
    if reveal:
        words = [without_surrogates(one.nearest) for one in found.target]
        columns["continuation"] = _column(found, n_texts, words, pa.string())
    return columns


def _column(found: ContinuedTexts, n_texts: int, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    column: list[Any] = [None] * n_texts
    for row, value in zip(found.rows, values, strict=True):
        column[row] = value
    return pa.array(column, kind)
