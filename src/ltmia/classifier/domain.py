"""What a classifier was trained on, and how far from all of it another target lies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from ltmia.classifier.combinations import Combination
from ltmia.features.per_token import FeatureBatch

OUTSIDE_QUANTILE = 0.95
"""Share of the training combinations that lie within the limit when those of their base and corpus are left out."""
SAMPLE = 100
"""Members, and as many non-members, that a combination's means are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDomain:
    """The training combinations, each by its name and the means of its features."""

    names: tuple[str, ...]
    means: Float64[np.ndarray, "combinations feat"]
    spread: Float64[np.ndarray, " feat"]
    """Unit of distance along each feature: the standard deviation of the means."""
    limit: float
    """Distance beyond which a target is unlike all training data."""

    def __post_init__(self) -> None:
        """Refuse what no distance can be told by.

        Raises:
            ValueError: If the limit is no positive number.
        """
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"outside_limit = {self.limit}")

    @classmethod
    def of(cls, combinations: Sequence[Combination], version: str) -> "TrainingDomain":
        """Return the domain of a first training.

        Its limit is how far a combination of a base and a corpus that are both new lies from all others.
        """
        means = _means(combinations, version)
        spread = np.maximum(means.std(axis=0), 1e-3)
        limit = _outside_limit(means / spread, [combination.origin for combination in combinations])
        return cls(names=tuple(c.name for c in combinations), means=means, spread=spread, limit=limit)

    def widened(self, combinations: Sequence[Combination], version: str) -> "TrainingDomain":
        """Return the domain with more combinations in it; unit and limit of distances stay."""
        names = tuple(combination.name for combination in combinations)
        means = np.concatenate([self.means, _means(combinations, version)])
        return TrainingDomain(names=(*self.names, *names), means=means, spread=self.spread, limit=self.limit)

    def distance(self, features: FeatureBatch) -> float:
        """Return how far a target's features lie from the nearest training combination.

        Root mean square, over columns, of the difference of column means in units of their spread between training
        combinations. Around 1 the target is as far from all of them as they are from each other.
        """
        return float(_distances(self.means / self.spread, feature_means(features) / self.spread).min())

    @property
    def average_token(self) -> Float32[Tensor, " feat"]:
        """Features of an average token of the training data."""
        return torch.from_numpy(self.means.mean(axis=0)).float()


def feature_means(features: FeatureBatch) -> Float64[np.ndarray, " feat"]:
    """Return the mean of each feature column over the scored positions of all texts."""
    positions = features.values[features.mask]
    return positions.mean(axis=0, dtype=np.float64) if len(positions) else np.zeros(features.values.shape[2])


def _means(combinations: Sequence[Combination], version: str) -> Float64[np.ndarray, "combinations feat"]:
    samples = (np.concatenate([c.members[:SAMPLE], c.nonmembers[:SAMPLE]]) for c in combinations)
    return np.stack([feature_means(c.batch(rows, version)) for c, rows in zip(combinations, samples, strict=True)])


def _distances(
    scaled: Float64[np.ndarray, "combinations feat"], point: Float64[np.ndarray, " feat"]
) -> Float64[np.ndarray, " combinations"]:
    return np.sqrt(((scaled - point) ** 2).mean(axis=1))


def _outside_limit(scaled: Float64[np.ndarray, "combinations feat"], origins: Sequence[tuple[str, str]]) -> float:
    """Return how far from all others lies a combination of a base and a corpus that are both new."""
    nearest = []
    for point, (base, corpus) in zip(scaled, origins, strict=True):
        strange = np.array([base != other and corpus != topic for other, topic in origins])
        if strange.any():
            nearest.append(_distances(scaled[strange], point).min())
    return float(np.quantile(nearest, OUTSIDE_QUANTILE)) if nearest else 1.0
