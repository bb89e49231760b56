"""The attack on the weights: scores texts by how much of their gradient is in the update."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ltmia.errors import ConfigError, DataError
from ltmia.models.batching import BatchSize
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.progress import Report, silent
from ltmia.weights.coordinates import Coordinates, choose_coordinates
from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.gradients import GradientReader
from ltmia.weights.metric import Metric, metric_of, read_optimizer_state, second_moments
from ltmia.weights.mixture import Usage, count_used, fit_groups
from ltmia.weights.regression import find_coefficients
from ltmia.weights.solve import CONTRASTS, choose_ridges, normal_equations

FEWEST_TEXTS = 10
"""Fewest texts: with fewer, effects that all texts share cannot be removed."""
GRADIENT_BYTES = 8 * 10**9
"""Disk for the gradients of very many texts: from 20,000 texts on (6,667 if thorough), fewer coordinates are read."""
LEAST_COORDINATES = 10_000
"""Coordinates that are read of however many texts."""
TRIED_TEXTS = 300
"""Texts on which the kind of optimiser is chosen."""
NO_GRADIENT = "its gradient is not a finite number"
ZERO_GRADIENT = "its gradient is zero at all weights that are read"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """Settings for reading an update."""

    n_coordinates: int = 100_000
    """Coordinates read of the update, and kept of each text's gradient at each point, two bytes each."""
    n_layers: int | None = 4
    """Layers they are drawn from, counted from the output; the backward pass goes no deeper. None: all of them."""
    points: tuple[float, ...] = (0.0, 1.0)
    """Points from base (0) to target (1) at which gradients are computed: one to three, evenly spaced."""
    power: float = 1.0
    """How evenly the misfit of the linear model is spread over coordinates; see `metric_of`."""
    adaptive: bool | None = None
    """Whether the optimiser divides by the root of the mean squared gradient, as Adam does and SGD does not. None: the
    choice that makes the update more likely."""
    optimizer_state: Path | None = None
    """Adam's second moments as safetensors; None: estimated from the texts' gradients."""
    seed: int = 0
    """Seed of the draw of coordinates and of batches."""
    batch_size: BatchSize = 16
    """Texts of full length per pass; see `GradientReader`."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        for name in ("n_coordinates", "n_layers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} = {number}: expected at least 1")
        if not 0 <= self.power <= 1:
            raise ConfigError(f"power = {self.power}: expected 0 to 1")
        steps = [b - a for a, b in itertools.pairwise(self.points)]
        even = all(step > 0 and abs(step - steps[0]) < 1e-9 for step in steps)
        if len(self.points) not in CONTRASTS or not all(0 <= point <= 1 for point in self.points) or not even:
            raise ConfigError(f"points = {self.points}: expected 1 to 3 rising numbers from 0 to 1, evenly spaced")

    def coordinates_of(self, n_texts: int) -> int:
        """Return how many coordinates are read if there are so many texts."""
        affordable = GRADIENT_BYTES // (2 * len(self.points) * max(n_texts, 1))
        return min(self.n_coordinates, max(affordable, LEAST_COORDINATES))

    @classmethod
    def of(cls, *, thorough: bool) -> "WeightsConfig":
        """Return the default, or 200,000 coordinates of all layers at three points, which takes longer."""
        return cls(n_coordinates=200_000, n_layers=None, points=(0.0, 0.5, 1.0)) if thorough else cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateScores:
    """Result of the attack for each text; NaN for a text without a gradient."""

    score: Float64[np.ndarray, " text"]
    """For ranking: log-odds of having been used; higher for a more likely member."""
    alpha: Float64[np.ndarray, " text"]
    """Coefficient of the text's gradient in the update: about learning rate times passes, over batch size."""
    standard_error: Float64[np.ndarray, " text"]
    """Standard error of alpha."""
    posterior: Float64[np.ndarray, " text"]
    """Probability that the text was used, if texts are of two groups."""
    reasons: tuple[str | None, ...]
    """Why a text has no score; None if it has one."""
    n_used: float
    """Estimated number of used texts."""
    n_used_interval: tuple[float, float]
    """Its interval: 95 % in simulations. On real LMs it missed the truth on two of three targets, always too high."""
    explained: float
    """Share of the update that the texts explain."""
    layers: tuple[int, ...]
    """Layers that were read."""
    n_coordinates: int
    """Coordinates that were read."""
    points: tuple[float, ...]
    """Points at which gradients were computed."""
    rounded: float
    """Share of the coordinates whose stored weights look rounded; the others are taken as exact."""
    unread: float
    """Share of the weights in these layers' changed matrices that lie in matrices that cannot be read."""
    is_low_rank: bool
    """Whether the update was read as that of a merged adapter, in the space of its rows."""
    adaptive: bool
    """Whether the optimiser was taken to divide by the root of the mean squared gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """An update as a weighted sum of gradients; arrays are over the texts that take part."""

    metric: Metric
    alpha: Float64[np.ndarray, " scored"]
    standard_error: Float64[np.ndarray, " scored"]
    explained: float
    """See `UpdateScores`."""
    usage: Usage


def explain_update(
    gradients: PathGradients,
    rows: Int64[np.ndarray, " scored"],
    coordinates: Coordinates,
    config: WeightsConfig,
    report: Report = silent,
) -> Explanation:
    """Find each text's coefficient in an update, and the log-odds that it was used.

    Args:
        gradients: Gradients of the texts at points along the update.
        rows: Texts that take part; each has a gradient at all points.
        coordinates: The update.
        config: Options; the points are those of `gradients`.
        report: Called with progress.

    Raises:
        DataError: If the texts do not fit into memory, or the optimiser's state does not fit the model, or gradients
            and update do not fit together.
    """
    state = config.optimizer_state
    moments = (
        second_moments(gradients, rows, config.seed) if state is None else read_optimizer_state(state, coordinates)
    )
    try:
        metric = _pick_metric(gradients, rows, moments, coordinates, config)
        found = find_coefficients(gradients, rows, coordinates.change, metric, report, seed=config.seed)
        usage = count_used(found.estimate, found.variance, fit_groups(found.estimate, found.variance))
    except np.linalg.LinAlgError as error:
        raise DataError(f"the update cannot be explained by these gradients: {error}") from error
    if not np.isfinite(usage.log_odds).all():
        raise DataError("the scores of the update are not finite numbers: gradients and update do not fit together")
    return Explanation(
        metric=metric,
        alpha=found.alpha,
        standard_error=found.standard_error,
        explained=found.explained,
        usage=usage,
    )


class UpdateAttack:
    """Finds the texts that an update was made from; a context that closes the file of gradients.

    Other texts of the same kind remove effects that all texts share; no text needs a label. Disk: two bytes a
    coordinate, point and text; of very many texts fewer coordinates are read, see `GRADIENT_BYTES`. Memory beside the
    models: up to 5,000 texts, 16 bytes times the square of (texts times points), at most 1.5 GiB at two points and 3.4
    GiB at three; with more texts, see `find_coefficients`.

    Args:
        pair: Target and base, both in memory, neither of them quantised.
        encoded: Token ids of the texts.
        folder: Folder for the gradients; the same call resumes a killed run.
        identity: Hashes of the two models: gradients of other models in the folder are thrown away.
        config: Options.

    Raises:
        ModelError: If the update cannot be read, or fine-tuning changed nothing.
        DataError: If there are too few texts.
        StoreError: If the disk has no room.
    """

    def __init__(
        self,
        pair: Pair,
        encoded: Sequence[EncodedText],
        folder: Path,
        *,
        identity: str,
        config: WeightsConfig | None = None,
    ) -> None:
        self.config = config = config or WeightsConfig()
        """Options."""
        self.encoded = encoded
        """Token ids of the texts."""
        n_scorable = self._n_scorable
        if n_scorable < FEWEST_TEXTS:
            raise DataError(
                f"{n_scorable} texts can be scored, but reading an update needs at least {FEWEST_TEXTS}, better some "
                "hundreds: add texts of the same kind, which may also be known non-members"
            )
        self.coordinates = choose_coordinates(
            pair, n_coordinates=config.coordinates_of(len(encoded)), n_layers=config.n_layers, seed=config.seed
        )
        """Coordinates that are read."""
        self.gradients = GradientReader(
            pair, encoded, self.coordinates, config.points, folder, identity=identity, batch_size=config.batch_size
        )
        """Reads the texts' gradients; `score` reads those that are missing yet."""

    def __enter__(self) -> "UpdateAttack":
        return self

    def __exit__(self, *_: object) -> None:
        self.gradients.file.close()

    def score(self, report: Report = silent) -> UpdateScores:
        """Score all texts.

        Args:
            report: Called with progress.

        Raises:
            DataError: If too few texts have a gradient, or the optimiser's state does not fit the model.
            StoreError: If the disk has no room.
        """
        file, config, coordinates = self.gradients.finish(report), self.config, self.coordinates
        finite = np.isfinite(file.scales).all(axis=0)
        rows = np.flatnonzero(finite & file.scales.any(axis=0))
        if len(rows) < FEWEST_TEXTS:
            raise DataError(
                f"only {len(rows)} of {self._n_scorable} texts have a gradient of finite numbers that is not zero: do "
                "the weights that changed affect the log-probabilities?"
            )
        found = explain_update(file, rows, coordinates, config, report)
        return _scores(found, coordinates, rows, self._reasons(finite, rows), config.points)

    def _reasons(self, finite: Bool[np.ndarray, " text"], rows: Int64[np.ndarray, " scored"]) -> tuple[str | None, ...]:
        scored = set(rows.tolist())
        return tuple(
            None if row in scored else text.reason or (ZERO_GRADIENT if finite[row] else NO_GRADIENT)
            for row, text in enumerate(self.encoded)
        )

    @property
    def _n_scorable(self) -> int:
        return sum(bool(text.n_scored) for text in self.encoded)


def _pick_metric(
    file: PathGradients,
    rows: Int64[np.ndarray, " text"],
    moments: Float64[np.ndarray, " coordinate"],
    coordinates: Coordinates,
    config: WeightsConfig,
) -> Metric:
    """Make the metric; if the kind of optimiser is not given, try both on a sample of the texts."""
    kinds = (True, False) if config.adaptive is None else (config.adaptive,)
    tries = [metric_of(moments, coordinates, adaptive=kind, power=config.power) for kind in kinds]
    if len(tries) == 1:
        return tries[0]
    some = np.sort(np.random.default_rng(config.seed).choice(rows, min(len(rows), TRIED_TEXTS), replace=False))
    evidence = [choose_ridges(normal_equations(file, some, coordinates.change, metric)).evidence for metric in tries]
    return tries[int(np.argmax(evidence))]


def _scores(
    found: Explanation,
    coordinates: Coordinates,
    rows: Int64[np.ndarray, " text"],
    reasons: tuple[str | None, ...],
    points: tuple[float, ...],
) -> UpdateScores:
    usage = found.usage

    def spread(values: Float64[np.ndarray, " scored"]) -> Float64[np.ndarray, " text"]:
        out = np.full(len(reasons), np.nan)
        out[rows] = values
        return out

    return UpdateScores(
        score=spread(usage.log_odds),
        alpha=spread(found.alpha),
        standard_error=spread(found.standard_error),
        posterior=spread(usage.posterior),
        reasons=reasons,
        n_used=usage.n_used,
        n_used_interval=(usage.n_used_low, usage.n_used_high),
        explained=found.explained,
        layers=coordinates.layers,
        n_coordinates=len(coordinates),
        points=points,
        rounded=float(np.mean(coordinates.rounding > 0)),
        unread=coordinates.unread,
        is_low_rank=coordinates.is_low_rank,
        adaptive=found.metric.adaptive,
    )
