"""The expected log-ratio of each position: how much a target changes such tokens in other texts.

Fine-tuning changes whole kinds of tokens, in members and non-members alike: common words of the domain, endings,
punctuation, and tokens that the reference was unsure of. This shift says nothing about membership, and it differs
between targets. It is learned from the audited texts themselves, without labels, and cross-fitted: the expectation of a
text does not depend on that text. The excess is D_t minus the expectation: the part that is specific to this text. It
is divided by its standard deviation at such positions, because D_t is mostly noise at the start of a text.

Texts are split into three folds by the hash of their group. For the texts of one fold, tokens are counted on the second
fold, and a regression is fitted on the third: it predicts D_t from the counts and from the statistics of the position
(of both models; for the kind `lite`, of the reference only). Then the second and third fold are swapped, and the two
predictions are averaged. Because the counting and the learning never see the same text, a token's mean cannot give
away its own D_t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import permutations

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from ltmia.features.columns import EXPECTATIONS
from ltmia.features.per_token import RATIO_LIMIT, named_values, segment_sums
from ltmia.records import Expectation, RaggedStatistics

N_FOLDS = 3
"""Number of folds: one for counts, one for the regression, one to predict."""
TOKEN_PRIOR, PAIR_PRIOR = 5.0, 2.0
"""Weight, in occurrences, of the mean over all tokens in a token's mean, and of the token's mean in a pair's mean."""
LEAST_POSITIONS = 200
"""Fewest positions to fit trees on. With fewer, the mean is expected everywhere."""
LEAST_SPREAD = 1e-3
"""Smallest standard deviation of the excess: a target that equals its reference has none."""
SPREAD_PRIOR = 50.0
"""Weight, in positions, of the overall standard deviation in that of a band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The scored positions of some texts, concatenated, as inputs of the expectation."""

    inputs: Float64[np.ndarray, "pred n_inputs"]
    """Statistics of the position without the true token's log-ratio: of both models, or of the reference alone. The
    last column is the index in the text."""
    log_ratio: Float64[np.ndarray, " pred"]
    """D_t, finite."""
    token: Int64[np.ndarray, " pred"]
    previous: Int64[np.ndarray, " pred"]
    """Id of the previous token."""
    fold: Int64[np.ndarray, " pred"]

    @classmethod
    def of(
        cls,
        statistics: RaggedStatistics,
        token_ids: Sequence[Sequence[int] | np.ndarray],
        folds: Sequence[int],
        kind: str = "full",
    ) -> "Positions":
        """Make the positions of some texts.

        Args:
            statistics: Statistics of their scored positions.
            token_ids: Ids of each text, beginning one before its first scored position.
            folds: Fold of each text, see `fold_of`.
            kind: Kind of expectation, see `columns.EXPECTATIONS`.

        Raises:
            ValueError: If ids and positions do not align.
        """
        counts = np.diff(statistics.offsets)
        ids = [np.asarray(text[: n + 1], np.int64) for text, n in zip(token_ids, counts, strict=True)]
        if any(n and len(text) != n + 1 for text, n in zip(ids, counts, strict=True)):
            raise ValueError("a text has other token ids than scored positions")
        nothing = np.zeros(0, np.int64)
        values = named_values(statistics, ("log_ratio", *EXPECTATIONS[kind]))
        place = np.arange(len(values)) - np.repeat(statistics.offsets[:-1], counts)
        return cls(
            inputs=np.column_stack([values[:, 1:], place]).astype(np.float64),
            log_ratio=values[:, 0].astype(np.float64),
            token=np.concatenate([nothing, *(text[1:] for text in ids)]),
            previous=np.concatenate([nothing, *(text[:-1] for text in ids)]),
            fold=np.repeat(np.asarray(folds, np.int64), counts),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Positions"]) -> "Positions":
        """Join the positions of several lists of texts, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.log_ratio)

    @property
    def band(self) -> Int64[np.ndarray, " pred"]:
        """Band of the index in the text, each twice as wide as the one before: 0, 1 to 2, 3 to 6, ..."""
        return np.floor(np.log2(self.inputs[:, -1] + 1.0)).astype(np.int64)

    @property
    def pair(self) -> Int64[np.ndarray, " pred"]:
        """A number that identifies the pair of the token and the previous token."""
        return self.previous * 2**31 + self.token

    def take(self, rows: np.ndarray) -> "Positions":
        """Return the positions of an index or a mask."""
        return Positions(
            inputs=self.inputs[rows],
            log_ratio=self.log_ratio[rows],
            token=self.token[rows],
            previous=self.previous[rows],
            fold=self.fold[rows],
        )


class ExpectedLogRatio:
    """Predicts D_t of one target: for the texts of each fold, from the texts of the two other folds.

    `fit` sets `spreads_`, (bands,): for each band of positions, the standard deviation of D_t minus its expected value
    over the texts of `fit`. The excess is divided by this spread.
    """

    def fit(self, positions: Positions) -> "ExpectedLogRatio":
        """Learn from texts of any membership; positions that are not finite are left out."""
        usable = positions.take(np.isfinite(positions.log_ratio) & np.isfinite(positions.inputs).all(axis=1))
        folds = [usable.take(usable.fold == fold) for fold in range(N_FOLDS)]
        self._regressions = {
            # The remaining one of the three folds is predicted.
            (counting, learning): _Regression(folds[counting], folds[learning])
            for counting, learning in permutations(range(N_FOLDS), 2)
        }
        self.spreads_ = _spreads(usable.log_ratio - self.predict(usable)[:, 0], usable.band)
        return self

    def predict(self, positions: Positions) -> Float64[np.ndarray, "pred 3"]:
        """Return the expected D_t, and the counts of the token and of the pair of tokens in other texts."""
        found = np.zeros((len(positions), 3))
        for (counting, learning), regression in self._regressions.items():
            rows = np.flatnonzero(positions.fold == N_FOLDS - counting - learning)
            if len(rows):
                found[rows] += regression.predict(positions.take(rows)) * [0.5, 1.0, 1.0]
        found[:, 0] = np.clip(np.nan_to_num(found[:, 0]), -RATIO_LIMIT, RATIO_LIMIT)
        return found

    def expect(self, positions: Positions) -> Expectation:
        """Return the prediction in the form that features are made from."""
        found = self.predict(positions).astype(np.float32)
        # Bands beyond the last fitted one use its value.
        spread = self.spreads_[np.minimum(positions.band, len(self.spreads_) - 1)].astype(np.float32)
        return Expectation(log_ratio=found[:, 0], token_count=found[:, 1], pair_count=found[:, 2], spread=spread)


def mean_excess(statistics: RaggedStatistics) -> Float64[np.ndarray, " texts"]:
    """Return each text's mean excess, the attack of that name; NaN without scored positions or expectation.

    The excess at each position is weighted by the inverse of its standard deviation, so in nats by the inverse of its
    variance: the best estimate of a gain that is the same at all positions.
    """
    if statistics.expectation is None:
        return np.full(len(statistics), np.nan)
    excess = statistics.expectation.excess(statistics.tokens.log_ratio).astype(np.float64)
    weight = 1.0 / statistics.expectation.spread.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return segment_sums(excess * weight, statistics.offsets) / segment_sums(weight, statistics.offsets)


def fold_of(group: str) -> int:
    """Return the fold of a text, by its group: no text's expectation is learned from its own document."""
    digest = blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % N_FOLDS


def _spreads(excess: Float64[np.ndarray, " pred"], band: Int64[np.ndarray, " pred"]) -> Float64[np.ndarray, " bands"]:
    """Return the standard deviation in each band, shrunk towards the overall one in bands with few positions."""
    if not len(excess):
        return np.array([LEAST_SPREAD])
    overall = float((excess**2).mean())
    sums, counts = np.bincount(band, excess**2), np.bincount(band)
    return np.maximum(np.sqrt((sums + SPREAD_PRIOR * overall) / (counts + SPREAD_PRIOR)), LEAST_SPREAD)


def _one_thread() -> threadpool_limits:
    """Keep the trees to one thread.

    Threads wait for each other some ten thousand times in a fit of .4 s. If another program uses one of the cores, each
    wait lasts until the core is free: 100 s in all.
    """
    return threadpool_limits(1, "openmp")


class _Regression:
    """Trees that are fitted on one fold with the counts of another."""

    def __init__(self, counted: Positions, learned: Positions) -> None:
        self._overall = float(counted.log_ratio.mean()) if len(counted) else 0.0
        self._tokens = _Means(counted.token, counted.log_ratio)
        self._previous = _Means(counted.previous, counted.log_ratio)
        self._pairs = _Means(counted.pair, counted.log_ratio)
        self._trees: HistGradientBoostingRegressor | None = None
        self._constant = float(learned.log_ratio.mean()) if len(learned) else self._overall
        if len(learned) >= LEAST_POSITIONS:
            trees = HistGradientBoostingRegressor(
                max_iter=60,
                learning_rate=0.15,
                max_leaf_nodes=15,
                min_samples_leaf=100,
                early_stopping=False,
                random_state=0,
            )
            with _one_thread():
                self._trees = trees.fit(self._inputs(learned)[0], learned.log_ratio)

    def predict(self, positions: Positions) -> Float64[np.ndarray, "pred 3"]:
        inputs, counts = self._inputs(positions)
        expected = np.full(len(positions), self._constant)
        if self._trees is not None:
            with _one_thread():
                # The trees take NaN as a missing value, and refuse infinities.
                expected = self._trees.predict(np.nan_to_num(inputs, nan=np.nan, posinf=1e30, neginf=-1e30))
        return np.column_stack([expected, counts])

    def _inputs(self, positions: Positions) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs of the trees, and the two counts."""
        token_means, n_token = self._tokens(positions.token, self._overall, TOKEN_PRIOR)
        pair_means, n_pair = self._pairs(positions.pair, token_means, PAIR_PRIOR)
        previous_means, _ = self._previous(positions.previous, self._overall, TOKEN_PRIOR)
        counts = np.column_stack([n_token, n_pair])
        return np.column_stack([positions.inputs, token_means, pair_means, previous_means, counts]), counts


class _Means:
    """Mean of a value by key, shrunk towards a prior if the key is rare."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._keys, inverse = np.unique(keys, return_inverse=True)
        self._sums = np.bincount(inverse, values, len(self._keys))
        self._counts = np.bincount(inverse, minlength=len(self._keys))

    def __call__(self, keys: np.ndarray, prior: float | np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (sum + weight * prior) / (count + weight) and the count, 0 for a key never seen."""
        if not len(self._keys):
            return np.broadcast_to(prior, keys.shape).astype(np.float64), np.zeros(len(keys))
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[place] == keys
        counts = np.where(known, self._counts[place], 0)
        return (np.where(known, self._sums[place], 0.0) + weight * prior) / (counts + weight), counts
