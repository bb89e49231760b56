"""Models how an optimiser turns gradients into an update, and how noisy each coordinate of the update is.

Adam divides each coordinate by the square root of v, the running mean of the squared gradient of a batch. So an update
is a sum of its texts' gradients only after the same division.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from safetensors import SafetensorError, safe_open

from ltmia.errors import DataError
from ltmia.weights.backward import MatrixPlaces
from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import PathGradients

BATCH_TEXTS = 8
"""Texts of the batches that v is estimated from."""
SHUFFLES = 4
"""Number of times that all texts are split into batches."""
BLOCK_BYTES = 64 * 2**20
"""Bytes of gradients that are read at a time."""
SQUARE_ROUNDS, LEAST_SQUARE = 50, 0.5
"""Rounds in which a mean square is found, and the smallest share of it that a round leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Weights of the regression, for each coordinate."""

    preconditioner: Float64[np.ndarray, " coordinate"]
    """Factor by which the optimiser multiplied gradients."""
    noise: Float64[np.ndarray, " coordinate"]
    """Standard deviation of the noise, up to a common factor; infinite: the coordinate is left out."""
    n_told: float
    """Number of exact coordinates that would tell as much of the noise. A coarsely rounded one counts for little: from
    a wide cell, a weight hardly ever moves, so no error is seen."""
    adaptive: bool
    """Whether the optimiser divides by sqrt(v)."""


def second_moments(
    file: PathGradients, rows: Int64[np.ndarray, " text"], seed: int = 0
) -> Float64[np.ndarray, " coordinate"]:
    """Estimate Adam's v: the mean over random batches of texts of the squared mean gradient, averaged over the points.

    Args:
        file: Gradients.
        rows: Texts to draw batches from.
        seed: Seed of the draw.
    """
    dealt = _deal(len(rows), seed)
    n_coordinates, n_points = file.shape.n_coordinates, file.shape.n_points
    moments = np.empty(n_coordinates)
    for part in blocks(n_coordinates, len(rows)):
        mean = np.mean([file.block(point, rows, part) for point in range(n_points)], axis=0)
        squares = [np.square(mean[batch].mean(axis=1, dtype=np.float64)).mean(axis=0) for batch in dealt]
        moments[part] = np.mean(squares, axis=0)
    return moments


def blocks(n_coordinates: int, n_rows: int) -> list[slice]:
    """Split coordinates into runs so that all rows of a run take `BLOCK_BYTES` in float32."""
    step = max(BLOCK_BYTES // (4 * max(n_rows, 1)), 1)
    return [slice(start, min(start + step, n_coordinates)) for start in range(0, n_coordinates, step)]


def _deal(n_texts: int, seed: int) -> list[Int64[np.ndarray, "batch text"]]:
    """Return the texts of each batch, for each shuffle; those that fill no batch are left out."""
    rng = np.random.default_rng(seed)
    size = min(BATCH_TEXTS, n_texts)
    whole = n_texts - n_texts % size
    return [rng.permutation(n_texts)[:whole].reshape(-1, size) for _ in range(SHUFFLES)]


def read_optimizer_state(path: Path, coordinates: Coordinates) -> Float64[np.ndarray, " coordinate"]:
    """Read Adam's v at the coordinates from a safetensors file that holds a tensor for each parameter, by its name.

    Raises:
        DataError: If the file cannot be read, or lacks a parameter or has another shape for it.
    """
    try:
        with safe_open(path, "pt") as state:
            return np.concatenate([_moments_at(path, state, place) for place in coordinates.places])
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: not readable as safetensors ({error}); expected Adam's second moments (exp_avg_sq), one tensor a "
            "parameter, named as in the model"
        ) from error


def _moments_at(path: Path, state: Any, place: MatrixPlaces) -> Float64[np.ndarray, " coordinate"]:
    found = state.get_tensor(place.name) if place.name in state.keys() else None  # noqa: SIM118  no mapping
    if found is None or tuple(found.shape) != place.shape:
        shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
        raise DataError(f"{path}: {shape} for {place.name}; expected second moments of shape {place.shape}")
    moments: Float64[np.ndarray, " coordinate"] = place.variances(found).double().numpy()
    if not (np.isfinite(moments).all() and (moments >= 0).all()):
        raise DataError(f"{path}: {place.name} holds negative or infinite numbers; expected second moments")
    return moments


def mean_square(values: Float64[np.ndarray, " _"], variance: Float64[np.ndarray, " _"]) -> float:
    """Return the mean square of exact numbers, from observations with errors of known variance: the most likely one."""
    found = float(np.square(values).mean())
    for _ in range(SQUARE_ROUNDS if variance.any() else 0):
        weights = (found + variance) ** -2.0
        found = max(float(weights @ (values**2 - variance) / weights.sum()), LEAST_SQUARE * found)
    return found


def metric_of(
    moments: Float64[np.ndarray, " coordinate"],
    coordinates: Coordinates,
    *,
    adaptive: bool,
    power: float,
) -> Metric:
    """Make a metric from second moments.

    Args:
        moments: Adam's v, known or estimated. A coordinate without any is left out.
        coordinates: The update, with the rounding noise of its stored format.
        adaptive: The optimiser divides by sqrt(v), as Adam does; else it follows the gradient.
        power: How evenly the misfit of the linear model is spread: 1, the same everywhere; 0, as 1 / sqrt(v).
    """
    alive = (moments > 0) & np.isfinite(coordinates.rounding)
    safe = np.where(alive, moments, 1.0)
    scale = np.exp(np.log(safe[alive]).mean()) if alive.any() else 1.0
    # What a cell tells of the update was found with this variance (`observe_update`), and holds with it alone.
    misfit = mean_square(coordinates.change[alive], coordinates.rounding[alive]) if alive.any() else 1.0
    variance = misfit * (safe / scale) ** (power - 1.0) + coordinates.rounding
    noise = np.sqrt(variance / misfit)
    return Metric(
        preconditioner=safe**-0.5 if adaptive else np.ones_like(safe),
        noise=np.where(alive, noise, np.inf),
        n_told=float((1 - coordinates.rounding[alive] / variance[alive]).sum()),
        adaptive=adaptive,
    )
