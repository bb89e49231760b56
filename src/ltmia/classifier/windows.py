"""Classifies long texts in windows as long as the texts that the classifier learned from, and averages their logits.

Fine-tuning often reads only the beginning of each text. Then the rest says nothing of membership, and it is rarely
known how much was read. But in windows that were trained on, logits vary more between texts, because some texts were
used and others were not. So a window's weight depends on how much more its logits vary than those of the window in
which they vary least (docs/method.md, "Long texts"). This needs no labels. The variance in each window is divided by
that of the same texts in the first window, because long texts may be of another kind than short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.isotonic import IsotonicRegression

from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.selection import score_evidence
from ltmia.classifier.combinations import inputs_of, rules_of
from ltmia.classifier.membership import MembershipClassifier
from ltmia.features.columns import expectation_of
from ltmia.features.per_token import FeatureBatch
from ltmia.features.store import FeatureStore
from ltmia.progress import Report, silent
from ltmia.records import RaggedStatistics

CLASSIFY_AT_ONCE = 256
"""Texts whose features are in memory at a time."""
FEWEST_TEXTS = 20
"""Fewest texts that reach at least half-way through a window, for their logits' variance to be compared."""
USUAL_EXCESS = 0.3
"""Relative difference of the variances in two windows that is ignored: it occurs though both were trained on."""
CLIPPED = 0.005
"""Share of the texts (at least one) whose logits are clipped at each end of a window's logits, before variances are
computed: a single text with a far larger logit than all others must not decide."""
LEAST_WEIGHT = 0.1
"""Least weight of a window, to which an allowance for chance is added."""
BY_CHANCE = 2.5
"""Standard deviations by which the variance of n logits, as a share of itself, may be off by chance; one is
sqrt(2 / n)."""
LITTLE = 0.5
"""A window with less than this share of the first window's weight tells little."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowsOfTexts:
    """Inputs of a classifier for all windows of some texts, text by text."""

    features: FeatureBatch
    counts: Int64[np.ndarray, " texts"]
    """Windows of each text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowLogits:
    """A classifier's logits in the windows of texts."""

    logits: Float64[np.ndarray, "texts windows"]
    """NaN where a text has no such window, and in all windows of a text that cannot be scored."""
    n_tokens: Int64[np.ndarray, "texts windows"]
    """Scored positions of each window."""
    size: int
    """Positions of a full window."""

    @classmethod
    def of(
        cls, logits: Sequence[Sequence[float] | np.ndarray], n_tokens: Int64[np.ndarray, " texts"], size: int
    ) -> "WindowLogits":
        """Lay out the logits of each text's windows as a table."""
        n_windows = max(map(len, logits), default=1)
        table = np.full((len(logits), n_windows), np.nan)
        for row, found in zip(table, logits, strict=True):
            row[: len(found)] = np.nan if np.isnan(found).any() else found
        counts = np.clip(n_tokens[:, None] - size * np.arange(n_windows), 0, size)
        return cls(logits=table, n_tokens=np.where(np.isnan(table), 0, counts), size=size)

    @cached_property
    def weights(self) -> Float64[np.ndarray, " windows"]:
        """Weight of a token in each window; a later window never weighs more than an earlier one."""
        n_windows, compared = self.logits.shape[1], self.n_compared
        n_texts = self._reached.sum(axis=0)
        variance = self._variance
        if compared < 2 or not variance.min() > 0:
            return np.ones(n_windows)
        falling = IsotonicRegression(increasing=False).fit_transform(
            np.arange(compared), variance, sample_weight=n_texts[:compared]
        )
        chance = BY_CHANCE * np.sqrt(2 / n_texts[:compared])
        weights = np.maximum(falling / falling.min() - 1 - USUAL_EXCESS, LEAST_WEIGHT + chance)
        weights = np.minimum.accumulate(weights)
        return np.concatenate([weights, np.full(n_windows - compared, weights[-1])])

    @property
    def n_compared(self) -> int:
        """Number of windows, from the first on, whose logits enough texts have for their variance to be compared."""
        return int(np.cumprod(self._reached.sum(axis=0) >= FEWEST_TEXTS).sum())

    @property
    def _variance(self) -> Float64[np.ndarray, " compared"]:
        """Variance of the logits in each window, as a multiple of that of the same texts in the first one."""
        found = np.ones(self.n_compared)
        for i in range(1, len(found)):
            same = self.logits[self._reached[:, i]][:, [0, i]]
            clipped = max(CLIPPED, 1 / (len(same) - 1))
            first, here = np.clip(same, *np.quantile(same, (clipped, 1 - clipped), axis=0)).var(axis=0)
            found[i] = here / first if first > 0 else 0.0
        return found

    @property
    def _reached(self) -> Bool[np.ndarray, "texts windows"]:
        """Whether a text fills at least half of a window."""
        return self.n_tokens >= self.size / 2

    @cached_property
    def shares(self) -> Float64[np.ndarray, "texts windows"]:
        """Weight of each window in its text's logit; sums to 1 per text; NaN for a text that cannot be scored."""
        weights = self.n_tokens * self.weights
        with np.errstate(invalid="ignore"):
            return weights / weights.sum(axis=1, keepdims=True)

    @property
    def pooled(self) -> Float64[np.ndarray, " texts"]:
        """Logit of each text: the weighted mean over its windows; NaN for a text that cannot be scored."""
        return np.where(np.isnan(self.logits[:, 0]), np.nan, np.nansum(self.logits * self.shares, axis=1))

    def lists(self) -> list[Float64[np.ndarray, " windows"]]:
        """Return the logits of each text's windows; one NaN for a text that cannot be scored."""
        counts = np.maximum((self.n_tokens > 0).sum(axis=1), 1)
        return [row[:count] for row, count in zip(self.logits, counts, strict=True)]

    @property
    def n_telling(self) -> int | None:
        """Number of tokens before the first window that tells little; None if there is no such window."""
        little = np.flatnonzero(self.weights < LITTLE * self.weights[:1])
        return self.size * int(little[0]) if len(little) else None


def classify_store(classifier: MembershipClassifier, store: FeatureStore, report: Report = silent) -> WindowLogits:
    """Return the classifier's logits in the windows of each text of a store."""
    found: list[np.ndarray] = []
    for start in range(0, len(store), CLASSIFY_AT_ONCE):
        rows = np.arange(start, min(start + CLASSIFY_AT_ONCE, len(store)))
        windows = windows_of(classifier, store, rows)
        logits = classifier.predict_logit(windows.features)
        found += np.split(logits, np.cumsum(windows.counts)[:-1])
        report("classifying", int(rows[-1]) + 1, len(store))
    return WindowLogits.of(found, store.texts["n_tokens"].to_numpy(), classifier.window)


def windows_of(classifier: MembershipClassifier, store: FeatureStore, rows: np.ndarray) -> WindowsOfTexts:
    """Gather a classifier's inputs for all windows of some texts.

    Raises:
        StoreError: If the store lacks statistics that the features need.
    """
    version = classifier.feature_version
    store.check_version(version)
    windows, counts = cut(store.statistics(rows, expectation_of(version)), classifier.window)
    text_of = np.repeat(np.arange(len(rows)), counts)
    scores = {name: store.scores(name)[rows][text_of] for name in rules_of(version)}
    for i, tokens in enumerate(windows):
        if counts[text_of[i]] > 1:
            for name, score in score_evidence(TextEvidence.of_statistics(tokens), rules_of(version)).items():
                scores[name][i] = score
    return WindowsOfTexts(features=inputs_of(windows, scores, version), counts=counts)


def cut(statistics: RaggedStatistics, size: int) -> tuple[RaggedStatistics, Int64[np.ndarray, " texts"]]:
    """Cut texts into windows, the last of them shorter; a text without positions is one empty window.

    Returns:
        The statistics with windows in place of texts, and the number of windows of each text.
    """
    lengths = np.diff(statistics.offsets)
    counts = np.maximum(-(-lengths // size), 1)
    ends = [np.minimum(size * np.arange(1, n + 1), length) for n, length in zip(counts, lengths, strict=True)]
    starts = np.repeat(statistics.offsets[:-1], counts)
    offsets = np.concatenate([[statistics.offsets[0]], starts + np.concatenate([[], *ends])]).astype(np.int64)
    return replace(statistics, offsets=offsets), counts
