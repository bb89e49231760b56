"""Labelled stores as training data: selects texts, and gathers batches of network inputs."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ltmia.attacks.table import EXCESS
from ltmia.errors import ConfigError, StoreError
from ltmia.expectation.model import mean_excess
from ltmia.features.columns import expectation_of
from ltmia.features.per_token import FeatureBatch, per_token_features
from ltmia.features.store import FeatureStore
from ltmia.records import RaggedStatistics

RULES = ("difference", "ratio", "ez_mia", "wbc", "min_k_plus_plus", "loss")
"""Hand-made rules that the head of a network reads, in addition to tokens and mean excess."""
LITE_RULES = tuple(name for name in RULES if name != "min_k_plus_plus")
"""Rules that do not need the distribution over the whole vocabulary."""
EZ_LIMIT = 6.0
"""The logarithm of EZ-MIA's ratio is clipped here: its conventions for "no loss at all" are huge numbers."""


def rules_of(version: str) -> tuple[str, ...]:
    """Return the hand-made attacks that a feature version uses."""
    return LITE_RULES if version == "lite" else RULES


def n_summary(version: str) -> int:
    """Return the number of columns of `summary_features`: the difference counts twice, the excess comes last."""
    return len(rules_of(version)) + 2


def summary_features(
    scores: Mapping[str, np.ndarray],
) -> Float32[np.ndarray, "texts n_summary"]:
    """Turn scores of hand-made attacks into inputs of moderate size; NaN becomes 0 (such a text has no tokens)."""
    difference = scores["difference"]
    columns = [
        difference,
        np.arcsinh(10 * difference),
        scores["ratio"] + 1.0,
        np.clip(np.log(np.maximum(scores["ez_mia"], 1e-9)), -EZ_LIMIT, EZ_LIMIT),
        scores["wbc"],
        *(scores[name] for name in ("min_k_plus_plus", "loss", EXCESS) if name in scores),
    ]
    return np.nan_to_num(np.stack(columns, 1)).astype(np.float32)


def gather_inputs(store: FeatureStore, rows: np.ndarray, version: str) -> FeatureBatch:
    """Gather a classifier's inputs for some texts: token features, and the scores of hand-made attacks.

    Raises:
        StoreError: If the store lacks statistics that the features need.
    """
    store.check_version(version)
    statistics = store.statistics(rows, expectation_of(version))
    return inputs_of(statistics, {name: store.scores(name)[rows] for name in rules_of(version)}, version)


def inputs_of(statistics: RaggedStatistics, scores: Mapping[str, np.ndarray], version: str) -> FeatureBatch:
    """Make a classifier's inputs of token statistics, and of the scores of the hand-made attacks of `rules_of`."""
    # The mean excess of the token features, with the same minimum length as for the other rules.
    excess = np.where(np.isnan(scores["difference"]), np.nan, mean_excess(statistics))
    summary = summary_features({**scores, EXCESS: excess})
    return per_token_features(statistics, version=version, summary=summary)


class Combination:
    """One labelled store, ready to train on or to evaluate."""

    def __init__(self, folder: Path | str) -> None:
        """Open a store.

        Raises:
            StoreError: If it is not a finished store, or holds no labels.
        """
        self.store = FeatureStore(folder)
        if "label" not in self.store.texts.column_names:
            raise StoreError(f"{folder}: a store without labels; only the lab's stores can be used")
        self.name = Path(folder).name
        recipe = self.store.manifest.get("combination", {})
        self.origin: tuple[str, str] = (recipe.get("base", self.name), recipe.get("corpus", self.name))
        """Base and corpus; the store's name if the lab did not make it."""
        self.labels: Int64[np.ndarray, " texts"] = self.store.texts["label"].to_numpy()
        reasons = self.store.texts["reason"].to_pylist()
        scorable = np.array([reason is None for reason in reasons])
        self.members = np.flatnonzero(scorable & (self.labels == 1))
        self.nonmembers = np.flatnonzero(scorable & (self.labels == 0))

    @property
    def n_pairs(self) -> int:
        """Number of members that can be paired with a non-member."""
        return min(len(self.members), len(self.nonmembers))

    def batch(self, rows: np.ndarray, version: str) -> FeatureBatch:
        """Gather features and summary of some texts."""
        return gather_inputs(self.store, rows, version)


CombinationRows = tuple[Combination, np.ndarray]
"""A combination, and rows of some of its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch:
    """Inputs and labels of some texts of one combination."""

    name: str
    """Name of the combination."""
    inputs: tuple[Tensor, Tensor, Tensor]
    """See `tensors`."""
    labels: Float32[Tensor, " batch"]
    """1 for members."""


def load_ahead(parts: Iterable[CombinationRows], version: str) -> Generator[LabelledBatch, None, None]:
    """Yield batches in order; the next batch is loaded in the background."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        loading = (reader.submit(_load, combination, rows, version) for combination, rows in parts)
        ahead = next(loading, None)
        while ahead is not None:
            current, ahead = ahead, next(loading, None)
            yield current.result()


def _load(combination: Combination, rows: np.ndarray, version: str) -> LabelledBatch:
    labels = torch.from_numpy(combination.labels[rows]).float()
    return LabelledBatch(name=combination.name, inputs=tensors(combination.batch(rows, version)), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Training data of a network, and held-out data that chooses the epoch."""

    training: Sequence[Combination]
    validation: Sequence[Combination]
    """Other combinations, held out as a whole."""
    version: str
    """Version of the features."""

    def __post_init__(self) -> None:
        """Refuse data that a network cannot be trained on.

        Raises:
            ConfigError: If there is no combination to train on.
            StoreError: If one lacks members or non-members, or what the features are made from, naming it.
        """
        if not self.training:
            raise ConfigError(
                f"0 combinations to train on, {len(self.validation)} held out: give more stores, or hold out fewer"
            )
        for combination in (*self.training, *self.validation):
            combination.store.check_version(self.version)
            if not combination.n_pairs:
                raise StoreError(
                    f"{combination.name}: {len(combination.members)} members and {len(combination.nonmembers)} "
                    "non-members can be scored; expected some of both: leave it out"
                )

    @property
    def n_texts(self) -> int:
        """Number of texts in an epoch, with as many non-members as members."""
        return 2 * sum(combination.n_pairs for combination in self.training)


def tensors(batch: FeatureBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, mask and summary as tensors."""
    summary = batch.summary
    if summary is None:
        summary = np.zeros((len(batch), n_summary(batch.version)), np.float32)
    return torch.from_numpy(batch.values), torch.from_numpy(batch.mask), torch.from_numpy(summary)
