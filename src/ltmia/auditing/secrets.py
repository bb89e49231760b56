"""Ranks the secrets in the texts of an audit: chooses values, has both models rank them, and lays out the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.auditing.question import JudgeConfig, Question
from ltmia.auditing.text_sets import TextSets
from ltmia.data.spans import Span, SpanFile, read_spans
from ltmia.errors import ConfigError
from ltmia.evaluation.results import Measure, Secrets, SecretValues
from ltmia.extraction.exposure import CONFIDENCE, Tried
from ltmia.progress import Report
from ltmia.records import Texts, without_surrogates
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.secret_ranks import RankedBy, RankedSecret, Secret, rank_secrets

DIGITS = 9
"""Bits are rounded to so many decimals before they are rounded up, so that log2(1024) is 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A secret value: the first span that holds it, and what both models say of it there."""

    span: Span
    number: int
    """Number of the span in its text, from 1."""
    n_copies: int
    """Spans with this value in texts of the same side."""
    found: RankedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSecrets:
    """The secret values of an audit. Values in the texts to judge come first."""

    judged: tuple[Value, ...]
    nonmembers: tuple[Value, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All values."""
        return (*self.judged, *self.nonmembers)


def wanted_spans(config: JudgeConfig, texts: Sequence[Texts]) -> SpanFile | None:
    """Read the file of spans, if one was given.

    Raises:
        DataError: If something in it is wrong, or it names a text that is not there.
    """
    if config.spans is None:
        return None
    spans = read_spans(config.spans)
    spans.check_ids(texts)
    return spans


def refuse_without_models(pair: AuditedPair, question: Question) -> None:
    """Refuse spans if there are only recordings, because the models must run on other values than the true one.

    Raises:
        ConfigError: If so.
    """
    if question.spans is not None and pair.models is None:
        raise ConfigError("`spans` needs the models themselves: recordings hold no other values than the true ones")


def find_secrets(pair: AuditedPair, question: Question, report: Report) -> FoundSecrets | None:
    """Rank the secrets in the texts of an audit; return None if the audit has no spans.

    Each value counts once, at the first place where it occurs. A value that occurs in both sets counts for the texts to
    judge. The values to rank are drawn at random, before a model reads any of them.
    """
    if question.spans is None or pair.models is None:
        return None
    sets, config = question.sets, question.config
    sides = _distinct(question.spans.find(sets.texts), sets)
    rng = np.random.default_rng(config.seed)
    drawn = [sorted(rng.permutation(len(side))[: config.most_values].tolist()) for side in sides]
    first = [side[i][0][0] for side, rows in zip(sides, drawn, strict=True) for i in rows]
    ranked = iter(
        rank_secrets(
            pair.models,
            [Secret(text=sets.texts.texts[span.row], start=span.start, end=span.end) for span in first],
            n_alternatives=config.alternatives,
            max_length=config.max_length,
            seed=config.seed,
            report=report,
        )
    )
    left_out = RankedSecret(reason=f"not drawn: {config.most_values} values of each side are ranked")
    judged, nonmembers = (
        tuple(
            Value(
                span=copies[0][0],
                number=copies[0][1],
                n_copies=len(copies),
                found=next(ranked) if i in rows else left_out,
            )
            for i, copies in enumerate(side)
        )
        for side, rows in zip(sides, drawn, strict=True)
    )
    return FoundSecrets(judged=judged, nonmembers=nonmembers)


def _distinct(spans: Sequence[Span], sets: TextSets) -> list[list[list[tuple[Span, int]]]]:
    """Gather the spans of each value, numbered within their texts: those in texts to judge, and of the other values."""
    numbers: dict[int, int] = {}
    sides: list[dict[str, list[tuple[Span, int]]]] = [{}, {}]
    for span in spans:
        numbers[span.row] = numbers.get(span.row, 0) + 1
        side = sides[0] if span.row < sets.n_judged else sides[1]
        value = _value(sets, span)
        if side is sides[0] or value not in sides[0]:  # texts to judge come first
            side.setdefault(value, []).append((span, numbers[span.row]))
    return [list(side.values()) for side in sides]


def _value(sets: TextSets, span: Span) -> str:
    return sets.texts.texts[span.row][span.start : span.end]


def secrets_of(found: FoundSecrets | None, config: JudgeConfig) -> Secrets | None:
    """Summarise the exposures of both sides.

    All bits are whole numbers: exposures and upper ends are rounded up, and lower ends down. With the models and the
    text before a secret, exact figures would tell it.
    """
    if found is None:
        return None
    ranked = [value.found.target.tried for value in found.values if value.found.target is not None]
    return Secrets(
        judged=_summary(found.judged),
        nonmembers=_summary(found.nonmembers),
        n_alternatives=config.alternatives,
        reach=max((_up(tried.reach) for tried in ranked), default=0),
    )


def _summary(values: Sequence[Value]) -> SecretValues:
    target, reference = (_tried(values, name) for name in ("target", "reference"))
    if not target:
        return SecretValues(n_values=len(values), largest=_none(values), largest_by_base=_none(values))
    rises = [mine.exposure - its.exposure for mine, its in zip(target, reference, strict=True)]
    return SecretValues(
        n_values=len(values),
        n_ranked=len(target),
        largest=_largest(target),
        largest_by_base=_largest(reference),
        median=_middle([tried.exposure for tried in target]),
        median_by_base=_middle([tried.exposure for tried in reference]),
        median_rise=_middle(rises),
    )


def _none(values: Sequence[Value]) -> Measure:
    reasons = sorted({value.found.reason or "" for value in values})
    return Measure(reason=f"no value could be ranked: {'; '.join(reasons)}" if values else "no span was found")


def _tried(values: Sequence[Value], model: str) -> list[Tried]:
    found: list[RankedBy | None] = [getattr(value.found, model) for value in values]
    return [ranked.tried for ranked in found if ranked is not None]


def _largest(tried: Sequence[Tried]) -> Measure:
    """Return the largest exposure. All intervals together hold with the usual confidence (Bonferroni)."""
    lows, highs = zip(*(one.interval(1 - (1 - CONFIDENCE) / len(tried)) for one in tried), strict=True)
    return Measure(
        value=_up(max(one.exposure for one in tried)), low=floor(round(max(lows), DIGITS)), high=_up(max(highs))
    )


def _middle(bits: Sequence[float]) -> float | None:
    """Return the median to a tenth of a bit; None for one value, because it would be that value's own figure."""
    return round(median(bits), 1) + 0.0 if len(bits) > 1 else None  # adding 0 turns -0 into 0


def _up(bits: float) -> int:
    return ceil(round(bits, DIGITS))


def span_columns(found: FoundSecrets, sets: TextSets, ids: Sequence[str], *, reveal: bool) -> dict[str, Any]:
    """Lay out `spans.parquet`: one row per value, by id and number of its first span; the values only on request."""
    values = found.values
    columns: dict[str, Any] = {
        "id": pa.array([ids[value.span.row] for value in values], pa.string()),
        "span": pa.array([value.number for value in values], pa.int64()),
        "label": pa.array([sets.labels[value.span.row] for value in values], pa.int64()),
        "kind": pa.array([value.span.kind for value in values], pa.string()),
        "n_copies": pa.array([value.n_copies for value in values], pa.int64()),
        "exposure": pa.array([_whole(value.found.target) for value in values], pa.int64()),
        "exposure_by_base": pa.array([_whole(value.found.reference) for value in values], pa.int64()),
        "reason": pa.array([value.found.reason for value in values], pa.string()),
    }
    if reveal:
        columns["value"] = pa.array([without_surrogates(_value(sets, value.span)) for value in values], pa.string())
    return columns


def _whole(ranked: RankedBy | None) -> int | None:
    return None if ranked is None else _up(ranked.tried.exposure)


def private_span_columns(found: FoundSecrets) -> dict[str, Any]:
    """Lay out `private/spans.parquet`: exact figures of the values that were ranked."""
    values = [value for value in found.values if value.found.target is not None]
    columns: dict[str, Any] = {
        name: pa.array([getattr(value.span, name) for value in values], pa.int64()) for name in ("row", "start", "end")
    }
    for model, ending in (("target", ""), ("reference", "_by_base")):
        ranked: list[RankedBy] = [getattr(value.found, model) for value in values]
        ends = [one.tried.interval() for one in ranked]
        columns |= {
            f"logp{ending}": pa.array([one.logp for one in ranked], pa.float64()),
            f"n_better{ending}": pa.array([one.tried.n_better for one in ranked], pa.int64()),
            f"exposure{ending}": pa.array([one.tried.exposure for one in ranked], pa.float64()),
            f"low{ending}": pa.array([low for low, _ in ends], pa.float64()),
            f"high{ending}": pa.array([high for _, high in ends], pa.float64()),
        }
    columns["excess"] = pa.array(
        [
            mine - its
            for mine, its in zip(columns["logp"].to_pylist(), columns["logp_by_base"].to_pylist(), strict=True)
        ],
        pa.float64(),
    )
    columns["n_alternatives"] = pa.array([tried.n for tried in _tried(values, "target")], pa.int64())
    columns["bits"] = pa.array([tried.bits for tried in _tried(values, "target")], pa.float64())
    return columns
