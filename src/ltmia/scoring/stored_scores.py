"""Texts and a pair to a score per text and attack, by way of a store on disk: resumable, in flat memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from ltmia.attacks.selection import fast_attacks
from ltmia.attacks.table import ATTACKS, EXCESS, LEARNED
from ltmia.classifier.combinations import gather_inputs, rules_of
from ltmia.classifier.membership import MembershipClassifier
from ltmia.features.columns import DEFAULT_K, expectation_of
from ltmia.features.per_token import FeatureBatch
from ltmia.features.store import FeatureStore
from ltmia.models.batching import BatchSize
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.store_filling import StorePlan, fill_store

CLASSIFY_AT_ONCE = 256
"""Texts whose features are in memory at a time."""
N_SAMPLED = 200
"""Least number of texts whose features are compared with the classifier's training data, if there are as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """Every score of every text, in input order."""

    scores: Mapping[str, Float64[np.ndarray, " texts"]]
    """By attack; NaN where unscorable."""
    n_tokens: Int64[np.ndarray, " texts"]
    reasons: Sequence[str | None]
    truncated: Sequence[bool | None]
    """Whether each text goes on behind what was read of it; None: not known."""
    sample: Callable[[], FeatureBatch | None]
    """Gives what the classifier reads of some of the texts, see `sampled_features`."""
    clock: ExtractionClock = field(default_factory=ExtractionClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTexts(ScoredTexts):
    """The same with the store that the scores were made from."""

    store: FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """Texts to score with a pair of models, and how."""

    texts: Texts
    folder: Path
    """Keeps what lets the same task go on after a kill."""
    config: ExtractionConfig
    """Names the attacks, and what is taken from each text."""
    identity: PairIdentity
    """Of the pair."""
    classifier: MembershipClassifier | None = None
    """Scores too, if given."""
    report: Report = silent
    """Told the progress."""


Scorer = Callable[[AuditedPair, ScoringTask], ScoredTexts]
"""Scores texts with every attack of a task, and leaves in its folder what lets it go on after a kill."""


def score_to_store(pair: AuditedPair, task: ScoringTask) -> StoredTexts:
    """Score texts with every fast attack of a task, and its classifier, through a store in its folder.

    Re-running with the same models, texts and options goes on where an earlier run stopped; a finished store is
    read, not made again.
    """
    clock = ExtractionClock()
    plan = StorePlan(key=task.identity.key, columns={"id": list(task.texts.ids)})
    filled = fill_store(pair, task.texts, task.folder, task.config, plan, clock=clock, report=task.report)
    return read_scores(filled.store, task.classifier, clock=clock, report=task.report)


def read_scores(
    store: FeatureStore,
    classifier: MembershipClassifier | None,
    *,
    clock: ExtractionClock,
    report: Report = silent,
) -> StoredTexts:
    """Take the scores of a finished store, and let the classifier, if given, score its texts."""
    scores = {name: store.scores(name) for name in store.score_names}
    if classifier is not None:
        scores[LEARNED] = classify_store(classifier, store, report)
    return StoredTexts(
        scores=scores,
        n_tokens=store.texts["n_tokens"].to_numpy(),
        reasons=store.texts["reason"].to_pylist(),
        truncated=store.texts["truncated"].to_pylist(),
        sample=lambda: sampled_features(store, classifier),
        store=store,
        clock=clock,
    )


def classify_store(
    classifier: MembershipClassifier, store: FeatureStore, report: Report = silent
) -> Float64[np.ndarray, " texts"]:
    """Return the classifier's logit of each text of a store."""
    logits = np.full(len(store), np.nan)
    for start in range(0, len(store), CLASSIFY_AT_ONCE):
        rows = np.arange(start, min(start + CLASSIFY_AT_ONCE, len(store)))
        logits[rows] = classifier.predict_logit(gather_inputs(store, rows, classifier.feature_version))
        report("classifying", int(rows[-1]) + 1, len(store))
    return logits


def sampled_features(store: FeatureStore, classifier: MembershipClassifier | None) -> FeatureBatch | None:
    """Gather what the classifier reads of some texts, spread over all scorable ones; None if there is nothing to."""
    rows = np.flatnonzero([reason is None for reason in store.texts["reason"].to_pylist()])
    if classifier is None or not len(rows):
        return None
    return gather_inputs(store, rows[:: max(len(rows) // N_SAMPLED, 1)], classifier.feature_version)


def extraction_config(
    names: Sequence[str],
    classifier: MembershipClassifier | None,
    *,
    max_length: int,
    batch_size: BatchSize,
    k: int = DEFAULT_K,
) -> ExtractionConfig:
    """Ask for the attacks wanted, and for the rules and the expectation that the classifier, if given, leans on."""
    needed, kinds = set(names), {"full"} if EXCESS in names else set()
    if classifier is not None:
        needed |= set(rules_of(classifier.feature_version))
        kinds.add(expectation_of(classifier.feature_version))
    return ExtractionConfig(
        attacks=fast_attacks([name for name in ATTACKS if name in needed]),
        k=k,
        max_length=max_length,
        batch_size=batch_size,
        expectations=tuple(sorted(kinds)),
    )
