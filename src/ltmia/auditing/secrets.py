"""Ranks the secrets in the texts of an audit: chooses values, has both models rank them, and lays out the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.auditing.question import JudgeConfig, Question
from ltmia.auditing.record_table import published_ids
from ltmia.auditing.spans import WantedSpans
from ltmia.auditing.text_sets import TextSets
from ltmia.data.spans import Span
from ltmia.evaluation.drawn_out import Secrets, SecretValues
from ltmia.evaluation.section import Measure
from ltmia.extraction.exposure import CONFIDENCE, Tried
from ltmia.progress import Report
from ltmia.records import without_surrogates
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.kept_ranks import KeptRanks
from ltmia.scoring.secret_ranks import RankConfig, RankedBy, RankedSecret, Secret, rank_secrets

DIGITS = 9
"""Bits are rounded to so many decimals before they are rounded up, so that log2(1024) is 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A secret value: the first span with it that can be ranked, and what both models say of it there."""

    span: Span
    number: int
    """Number of the span in its text, from 1."""
    n_copies: int
    """Spans with this value in texts of the same side."""
    found: RankedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSecrets:
    """The secret values of an audit. Values in the texts to judge come first."""

    wanted: WantedSpans
    judged: tuple[Value, ...]
    nonmembers: tuple[Value, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All values."""
        return (*self.judged, *self.nonmembers)


def find_secrets(
    pair: AuditedPair, question: Question, report: Report, kept: KeptRanks | None = None
) -> FoundSecrets | None:
    """Rank the secrets in the texts of an audit; return None if the audit has no spans.

    Each value counts once, at the first place where it can be ranked. A value that occurs in both sets counts for the
    texts to judge. The values to rank are drawn at random, before a model reads any of them.
    """
    if question.spans is None or pair.models is None:
        return None
    wanted, config = question.spans, question.config
    sides = _distinct(wanted)
    rng = np.random.default_rng(config.seed)
    drawn = [set(rng.permutation(len(side))[: config.most_values].tolist()) for side in sides]
    ranked = iter(
        rank_secrets(
            pair.models,
            [
                [_secret(wanted, span) for span, _ in places]
                for side, rows in zip(sides, drawn, strict=True)
                for i, places in enumerate(side)
                if i in rows
            ],
            RankConfig(n_alternatives=config.alternatives, max_length=question.max_length, seed=config.seed),
            kept=kept,
            report=report,
        )
    )
    not_drawn = RankedSecret(reason=f"not drawn: {config.most_values} values of each side are ranked")
    judged, nonmembers = (
        tuple(_valued(places, next(ranked) if i in rows else not_drawn) for i, places in enumerate(side))
        for side, rows in zip(sides, drawn, strict=True)
    )
    return FoundSecrets(wanted=wanted, judged=judged, nonmembers=nonmembers)


Places = list[tuple[Span, int]]
"""The spans with one value, each with its number in its text."""


def _distinct(wanted: WantedSpans) -> list[list[Places]]:
    """Gather the spans of each value: in the texts to judge, and of the other values in the non-members."""
    numbers: dict[int, int] = {}
    judged: dict[str, Places] = {}
    others: dict[str, Places] = {}
    for span in wanted.spans:
        numbers[span.row] = numbers.get(span.row, 0) + 1
        side = others if wanted.labels[span.row] == 0 else judged
        side.setdefault(_value(wanted, span), []).append((span, numbers[span.row]))
    return [list(judged.values()), [places for value, places in others.items() if value not in judged]]


def _valued(places: Places, found: RankedSecret) -> Value:
    span, number = places[found.place]
    return Value(span=span, number=number, n_copies=len(places), found=found)


def _secret(wanted: WantedSpans, span: Span) -> Secret:
    return Secret(text=wanted.texts.texts[span.row], start=span.start, end=span.end)


def _value(wanted: WantedSpans, span: Span) -> str:
    return wanted.texts.texts[span.row][span.start : span.end]


def secrets_of(found: FoundSecrets | None, config: JudgeConfig) -> Secrets | None:
    """Summarise the exposures of both sides.

    All figures follow from whole bits: exposures and upper ends are rounded up, and lower ends down. With the models
    and the text before a secret, exact figures would tell it.
    """
    if found is None:
        return None
    return Secrets(
        judged=_summary(found.judged),
        nonmembers=_summary(found.nonmembers),
        n_alternatives=config.alternatives,
        reach=max((_up(tried.reach) for tried in _tried(found.judged, "target")), default=0),
        unmatched=list(found.wanted.unmatched),
    )


def _summary(values: Sequence[Value]) -> SecretValues:
    target, reference = (_tried(values, name) for name in ("target", "reference"))
    if not target:
        return SecretValues(n_values=len(values), largest=_none(values), largest_by_base=_none(values))
    bits, by_base = ([_up(tried.exposure) for tried in ranked] for ranked in (target, reference))
    return SecretValues(
        n_values=len(values),
        n_ranked=len(target),
        largest=_largest(target),
        largest_by_base=_largest(reference),
        median=median(bits),
        median_by_base=median(by_base),
        median_rise=median(np.subtract(bits, by_base).tolist()),
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


def _up(bits: float) -> int:
    return ceil(round(bits, DIGITS))


def span_columns(found: FoundSecrets, salt: bytes, *, reveal: bool) -> dict[str, Any]:
    """Lay out `spans.parquet`: one row per value, named by text id and number of the span; values only on request."""
    values, wanted = found.values, found.wanted
    ids = published_ids(wanted.texts, salt)
    columns: dict[str, Any] = {
        "id": pa.array([ids[value.span.row] for value in values], pa.string()),
        "span": pa.array([value.number for value in values], pa.int64()),
        "label": pa.array([wanted.labels[value.span.row] for value in values], pa.int64()),
        "kind": pa.array([value.span.kind for value in values], pa.string()),
        "n_copies": pa.array([value.n_copies for value in values], pa.int64()),
        "exposure": pa.array([_whole(value.found.target) for value in values], pa.int64()),
        "exposure_by_base": pa.array([_whole(value.found.reference) for value in values], pa.int64()),
        "reason": pa.array([value.found.reason for value in values], pa.string()),
    }
    if reveal:
        columns["value"] = pa.array([without_surrogates(_value(wanted, value.span)) for value in values], pa.string())
    return columns


def _whole(ranked: RankedBy | None) -> int | None:
    return None if ranked is None else _up(ranked.tried.exposure)


def private_span_columns(found: FoundSecrets, sets: TextSets) -> dict[str, Any]:
    """Lay out `private/spans.parquet`: exact figures of the values that were ranked."""
    values = [value for value in found.values if value.found.target is not None]
    rows = [value.span.row if value.span.row < len(sets.texts) else None for value in values]
    columns: dict[str, Any] = {
        "row": pa.array(rows, pa.int64()),
        "start": pa.array([value.span.start for value in values], pa.int64()),
        "end": pa.array([value.span.end for value in values], pa.int64()),
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
