"""The validity checks of an audit: gathers what they need from texts, scores and models."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float64

from ltmia.classifier.membership import OUTSIDE_LIMIT, MembershipClassifier
from ltmia.data.duplicates import compare_sets, ngram_overlap
from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.results import Check, Measure, Validity
from ltmia.evaluation.validity import (
    backend_check,
    control_check,
    distribution_check,
    duplicates_check,
    length_check,
    power_check,
)
from ltmia.lm.pair import Pair
from ltmia.pipelines.extraction import ExtractionConfig, extract_batches
from ltmia.pipelines.labelled import LabelledTexts
from ltmia.pipelines.scoring import ScoredTexts


class CheckOptions(Protocol):
    """What the checks read of a command's options."""

    @property
    def max_length(self) -> int:
        """Token ids read of each text."""
        ...

    @property
    def seed(self) -> int:
        """Of folds."""
        ...

    @property
    def deduplicate(self) -> bool:
        """Repeats were left out."""
        ...


N_RESCORED = 4
"""Texts scored a second time, alone, for the backend check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the checks need of an audit's own measurements."""

    control: ControlScores
    """The bag-of-words control."""
    blind: Measure
    """Its AUC."""
    judge: Float64[np.ndarray, " texts"]
    """Scores of the attack that the decisions rest on."""
    smallest_p: float
    """Smallest p-value the calibration half can give."""


def check_validity(
    pair: Pair,
    data: LabelledTexts,
    scored: ScoredTexts,
    found: Findings,
    *,
    classifier: MembershipClassifier | None,
    config: CheckOptions,
) -> Validity:
    """Run every check of an audit.

    Args:
        pair: The models, for scoring a few texts again.
        data: Members and non-members.
        scored: What the audit scored.
        found: What the audit measured so far.
        classifier: The learned classifier, if it took part.
        config: The audit's options.
    """
    n_nonmembers = len(data.texts) - data.n_members
    return Validity(
        blind=control_check(found.control, found.blind, "words"),
        near_duplicates=_duplicates(data, config),
        length_only=length_check(scored.n_tokens, data.labels, found.judge, config.seed),
        out_of_distribution=_distribution(scored, classifier),
        backend=_backend(pair, data, scored, config),
        power=power_check(data.n_members, n_nonmembers, found.smallest_p),
    )


def _duplicates(data: LabelledTexts, config: CheckOptions) -> Check:
    members = data.texts.texts[: data.n_members]
    nonmembers = data.texts.texts[data.n_members :]
    found = compare_sets(members, nonmembers)
    return duplicates_check(
        n_within=len(found.members.rows) + len(found.nonmembers.rows),
        n_across=len(found.across.rows),
        overlaps=ngram_overlap(members, nonmembers).shares.tolist(),
        left_out=config.deduplicate,
    )


def _distribution(scored: ScoredTexts, classifier: MembershipClassifier | None) -> Check:
    features = scored.sample()
    distance = None if classifier is None or features is None else classifier.distance(features)
    return distribution_check(distance, OUTSIDE_LIMIT)


def _backend(pair: Pair, data: LabelledTexts, scored: ScoredTexts, config: CheckOptions) -> Check:
    """Score a few texts again, in batches as small as can be."""
    difference = scored.scores.get("difference", np.full(len(data.texts), np.nan))
    rows = np.flatnonzero(~np.isnan(difference))
    chosen = rows[:: max(len(rows) // N_RESCORED, 1)][:N_RESCORED]
    noise = 0.0
    small = ExtractionConfig(attacks=("difference",), max_length=config.max_length, batch_size=1)
    for batch in extract_batches(pair, [data.texts.texts[row] for row in chosen], small):
        for text in batch.texts:
            noise = max(noise, abs(text.scores["difference"] - difference[chosen[text.row]]))
    spread = float(np.nanstd(difference)) if len(rows) else 0.0
    dtype = str(pair.dtype).removeprefix("torch.")
    return backend_check(noise=noise, gap=spread, dtype=dtype)
