"""Runs the validity checks of an audit: gathers their inputs from texts, scores and models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.table import EXCESS
from ltmia.auditing.model_evidence import compare_with_base, rescore
from ltmia.auditing.text_sets import TextSets
from ltmia.classifier.membership import MembershipClassifier
from ltmia.data.duplicates import OVERLAP_SHARE, compare_sets, ngram_overlap
from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.model_checks import (
    RECORDED_BACKEND,
    RECORDED_BASE,
    backend_check,
    base_check,
    distribution_check,
    length_read_check,
)
from ltmia.evaluation.results import Check, Decisions, Validity
from ltmia.evaluation.section import Measure
from ltmia.evaluation.validity import (
    control_check,
    duplicates_check,
    expectation_check,
    length_check,
    power_check,
)
from ltmia.expectation.fit import sampled_texts
from ltmia.features.columns import needs_expectation
from ltmia.records import Texts
from ltmia.runtime import dtype_name
from ltmia.scoring.audited_pair import AuditedPair, LoadedPair
from ltmia.scoring.stored_scores import ScoredTexts

N_RESCORED = 4
"""Texts scored a second time, alone, for the backend check."""
N_COMPARED = 16
"""Texts that both models read again to compare their losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredScores:
    """Measurements of an audit that the checks need."""

    control: ControlScores
    """The bag-of-words control."""
    blind: Measure
    """Its AUC."""
    judge: Float64[np.ndarray, " texts"]
    """Scores of the attack that the decisions rest on."""
    attacks: Sequence[str]
    """Attacks that took part."""
    decisions: Decisions
    """Decisions, and the number of non-members they rest on."""


def check_validity(
    pair: AuditedPair,
    data: TextSets,
    scored: ScoredTexts,
    found: MeasuredScores,
    *,
    classifier: MembershipClassifier | None,
    max_length: int,
    seed: int,
) -> Validity:
    """Run every check of an audit.

    Args:
        pair: Target and reference; loaded models score a few texts again.
        data: The two sets of texts.
        scored: What the audit scored.
        found: What the audit measured so far.
        classifier: The learned classifier, if it took part.
        max_length: Tokens read of each text.
        seed: Seed of the folds.
    """
    loaded = pair if isinstance(pair, LoadedPair) else None
    return Validity(
        blind=control_check(found.control, found.blind, "words", data.judged),
        near_duplicates=_duplicates(data),
        length_only=length_check(scored.n_tokens, data.sides, found.judge, seed, data.judged),
        out_of_distribution=_distribution(scored, classifier),
        expectation=_expectation(scored, found.attacks, classifier),
        length_read=_length_read(scored, data.texts),
        base=RECORDED_BASE if loaded is None else _base(loaded, data, scored, max_length),
        backend=RECORDED_BACKEND if loaded is None else _backend(loaded, data, scored, max_length),
        power=power_check(data.n_judged, data.n_nonmembers, found.decisions, data.judged),
    )


def _duplicates(data: TextSets) -> Check:
    judged, nonmembers = data.split(data.texts.whole)
    found = compare_sets(judged, nonmembers)
    return duplicates_check(
        n_within=len(found.members.rows) + len(found.nonmembers.rows),
        n_across=len(found.across.rows),
        n_overlapping=ngram_overlap(nonmembers, judged).n_over(OVERLAP_SHARE),
        n_left_out=data.n_left_out,
        n_texts=len(data.texts),
        candidates=data.judged.removesuffix("s"),
    )


def _distribution(scored: ScoredTexts, classifier: MembershipClassifier | None) -> Check:
    features = scored.sample()
    if classifier is None or features is None:
        return distribution_check(None, 0.0)
    return distribution_check(classifier.domain_.distance(features), classifier.domain_.limit)


def _length_read(scored: ScoredTexts, texts: Texts) -> Check:
    found = scored.windows
    if found is None:
        return Check(status="not_measured", sentence="No classifier was used.")
    return length_read_check(
        found.weights.tolist(),
        n_compared=found.n_compared,
        size=found.size,
        n_telling=found.n_telling,
        prompted=any(texts.starts or ()),
    )


def _expectation(scored: ScoredTexts, attacks: Sequence[str], classifier: MembershipClassifier | None) -> Check:
    learns = classifier is not None and needs_expectation(classifier.feature_version)
    if not learns and EXCESS not in attacks:
        return expectation_check(None)
    return expectation_check(sum(scored.reasons[row] is None for row in sampled_texts(len(scored.reasons))))


def _base(pair: LoadedPair, data: TextSets, scored: ScoredTexts, max_length: int) -> Check:
    """Compare the models on non-members, because training changes outputs on members; on members if need be."""
    usable = np.array([reason is None for reason in scored.reasons])
    nonmembers = np.flatnonzero(usable & (data.sides == 0))
    rows = nonmembers if len(nonmembers) else np.flatnonzero(usable)
    chosen = rows[:: max(len(rows) // N_COMPARED, 1)][:N_COMPARED]
    return base_check(compare_with_base(pair, data.texts.take(chosen), max_length))


def _backend(pair: LoadedPair, data: TextSets, scored: ScoredTexts, max_length: int) -> Check:
    """Score a few texts again, in batches as small as can be."""
    difference = scored.scores.get("difference", np.full(len(data.texts), np.nan))
    rows = np.flatnonzero(~np.isnan(difference))
    chosen = rows[:: max(len(rows) // N_RESCORED, 1)][:N_RESCORED]
    found = rescore(pair, data.texts.take(chosen), difference[chosen].tolist(), max_length)
    judged, nonmembers = data.split(difference)
    return backend_check(
        found,
        gap=_mean(judged) - _mean(nonmembers),
        spread=float(np.nanstd(difference)) if len(rows) else float("nan"),
        dtype=dtype_name(pair.models.dtype),
        reference_dtype=dtype_name(pair.models.reference_dtype),
    )


def _mean(scores: np.ndarray) -> float:
    usable = scores[~np.isnan(scores)]
    return float(usable.mean()) if len(usable) else float("nan")
