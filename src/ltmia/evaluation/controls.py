"""Controls that do not see a model: can words or length alone separate members from non-members?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

N_FOLDS = 5
N_TREES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlScores:
    """Out-of-fold scores of a control, or the reason there are none."""

    scores: Float64[np.ndarray, " texts"]
    reason: str | None = None


def bag_of_words(
    texts: Sequence[str],
    labels: Int64[np.ndarray, " texts"],
    groups: Int64[np.ndarray, " texts"] | None = None,
    seed: int = 0,
) -> ControlScores:
    """Score texts by their words alone, with random forests that never saw the text's fold.

    A random forest of 100 trees of depth 2 reads how often each word occurs that is in at least 5 % of the texts. It is
    cross-validated in 5 folds, groups kept together (after arXiv 2406.17975). An AUC above chance means that the two
    sets of texts differ, not that there is membership.

    Args:
        texts: All texts, members and non-members.
        labels: 1 for members, 0 for non-members.
        groups: Group of each text; texts of one group share a fold.
        seed: Seed of the folds and of the forest.
    """
    nothing = np.full(len(texts), np.nan)
    fewest = N_FOLDS if groups is None else 1
    counts = (labels == 1).sum(), (labels == 0).sum()
    if min(counts) < fewest:
        return ControlScores(scores=nothing, reason=f"fewer than {fewest} texts of one kind")
    if max(counts) < N_FOLDS:
        return ControlScores(scores=nothing, reason=f"fewer than {N_FOLDS} texts of either kind")
    if groups is not None and len(np.unique(groups)) < N_FOLDS:
        return ControlScores(scores=nothing, reason=f"fewer than {N_FOLDS} groups")
    splitter = (
        StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
        if groups is None
        else StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    )
    rows = np.array(texts, dtype=object)
    scores = nothing.copy()
    for train, test in splitter.split(rows, labels, groups):
        scores[test] = _fold_scores(rows[train], labels[train], rows[test], seed)
    return ControlScores(scores=scores)


def _fold_scores(
    train: np.ndarray, labels: Int64[np.ndarray, " train"], test: np.ndarray, seed: int
) -> Float64[np.ndarray, " test"]:
    counter = CountVectorizer(min_df=0.05)
    try:
        words = counter.fit_transform(train)
    except ValueError:  # no word is frequent enough
        return np.full(len(test), 0.5)
    if len(np.unique(labels)) < 2:
        return np.full(len(test), 0.5)
    forest = RandomForestClassifier(N_TREES, max_depth=2, min_samples_leaf=5, random_state=seed)
    forest.fit(words, labels)
    return forest.predict_proba(counter.transform(test))[:, 1].astype(np.float64)


def length_bucket_rows(n_tokens: Int64[np.ndarray, " texts"], n_buckets: int = 4) -> list[Int64[np.ndarray, " bucket"]]:
    """Split rows into buckets of similar length and about equal size; ties stay together."""
    edges = np.unique(np.quantile(n_tokens, np.linspace(0, 1, n_buckets + 1)[1:-1]))
    bucket = np.searchsorted(edges, n_tokens, side="left")
    return [np.flatnonzero(bucket == i) for i in range(len(edges) + 1) if (bucket == i).any()]
