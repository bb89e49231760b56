"""The training domain of a classifier, and the distance of another target from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from ltmia.classifier.combinations import Combination
from ltmia.features.per_token import FeatureBatch

OUTSIDE_QUANTILE = 0.95
"""Share of training combinations within the limit, when those with the same base or corpus are left out."""
SAMPLE = 100
"""Number of members, and of non-members, from which a combination's means are computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDomain:
    """The training combinations, with their names and the means of their features."""

    names: tuple[str, ...]
    means: Float64[np.ndarray, "combinations feat"]
    spread: Float64[np.ndarray, " feat"]
    """Unit of distance along each feature: the standard deviation of the means."""
    limit: float
    """Distance beyond which a target is unlike all training data."""

    def __post_init__(self) -> None:
        """Refuse values from which no distance can be computed.

        Raises:
            ValueError: If the limit is not a positive number.
        """
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"outside_limit = {self.limit}")

    @classmethod
    def of(cls, combinations: Sequence[Combination], version: str) -> "TrainingDomain":
        """Return the domain of a first training.

        Its limit is the distance of a combination whose base and corpus are both new.
        """
        means = _means(combinations, version)
        spread = np.maximum(means.std(axis=0), 1e-3)
        limit = _outside_limit(means / spread, [combination.origin for combination in combinations])
        return cls(names=tuple(c.name for c in combinations), means=means, spread=spread, limit=limit)

    def widened(self, combinations: Sequence[Combination], version: str) -> "TrainingDomain":
        """Return the domain with more combinations; unit and limit of distances stay the same."""
        names = tuple(combination.name for combination in combinations)
        means = np.concatenate([self.means, _means(combinations, version)])
        return TrainingDomain(names=(*self.names, *names), means=means, spread=self.spread, limit=self.limit)

    def distance(self, features: FeatureBatch) -> float:
        """Return the distance of a target's features from the nearest training combination.

        The distance is the root mean square, over columns, of the difference of column means, in units of their
        standard deviation between training combinations. At 1, the target is about as far from them as they are from
        each other.
        """
        return float(_distances(self.means / self.spread, feature_means(features) / self.spread).min())

    @property
    def average_token(self) -> Float32[Tensor, " feat"]:
        """Mean features of the tokens of the training data."""
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
    """Return a high quantile of the distances of combinations from those with another base and another corpus."""
    nearest = []
    for point, (base, corpus) in zip(scaled, origins, strict=True):
        strange = np.array([base != other and corpus != topic for other, topic in origins])
        if strange.any():
            nearest.append(_distances(scaled[strange], point).min())
    return float(np.quantile(nearest, OUTSIDE_QUANTILE)) if nearest else 1.0
