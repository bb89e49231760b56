"""Scores texts with a pair of models through a store on disk: resumable, with bounded memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from ltmia.attacks.selection import fast_attacks
from ltmia.attacks.table import ATTACKS, EXCESS, LEARNED
from ltmia.classifier.combinations import gather_inputs, rules_of
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.windows import WindowLogits, classify_store
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

N_SAMPLED = 200
"""Fewest texts whose features are compared with the classifier's training data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """All scores of all texts, in input order."""

    scores: Mapping[str, Float64[np.ndarray, " texts"]]
    """Scores by attack; NaN for unscorable texts."""
    n_tokens: Int64[np.ndarray, " texts"]
    reasons: Sequence[str | None]
    truncated: Sequence[bool | None]
    """Whether each text continues after the part that was read; None: not known."""
    windows: WindowLogits | None = None
    """The classifier's logits in the windows of the texts; None without a classifier."""
    sample: Callable[[], FeatureBatch | None]
    """Returns the classifier's inputs for a sample of the texts, see `sampled_features`."""
    clock: ExtractionClock = field(default_factory=ExtractionClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTexts(ScoredTexts):
    """Scores, and the store that they were made from."""

    store: FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """Texts to score with a pair of models, and how."""

    texts: Texts
    folder: Path
    """Folder for the work, from which the same task resumes after a kill."""
    config: ExtractionConfig
    """Attacks, and other settings of the extraction."""
    identity: PairIdentity
    """Identity of the pair."""
    classifier: MembershipClassifier | None = None
    """The learned attack, if it takes part."""
    report: Report = silent
    """Called with progress."""


Scorer = Callable[[AuditedPair, ScoringTask], ScoredTexts]
"""Scores texts with every attack of a task; resumes from the task's folder after a kill."""


def score_to_store(pair: AuditedPair, task: ScoringTask) -> StoredTexts:
    """Score texts with every fast attack of a task, and its classifier, through a store in its folder.

    The same models, texts and options resume an earlier run; a finished store is reused.
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
    """Read the scores of a finished store, and add those of the classifier, if given."""
    scores = {name: store.scores(name) for name in store.score_names}
    windows = None if classifier is None else classify_store(classifier, store, report)
    if windows is not None:
        scores[LEARNED] = windows.pooled
    return StoredTexts(
        scores=scores,
        windows=windows,
        n_tokens=store.texts["n_tokens"].to_numpy(),
        reasons=store.texts["reason"].to_pylist(),
        truncated=store.texts["truncated"].to_pylist(),
        sample=lambda: sampled_features(store, classifier),
        store=store,
        clock=clock,
    )


def sampled_features(store: FeatureStore, classifier: MembershipClassifier | None) -> FeatureBatch | None:
    """Gather the classifier's inputs for a sample of the scorable texts; None without a classifier or such texts."""
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
    """Return settings for the given attacks, and for the rules and the expectation that the classifier needs."""
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
