"""Chooses the coordinates of the weights at which the update and the texts' gradients are read.

The coordinates are a random sample with a seed: a hundred thousand of many millions are enough.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from ltmia.errors import ModelError
from ltmia.models.pair import Pair
from ltmia.models.runner import RUN_ERRORS, ModelRunner
from ltmia.models.weight_delta import (
    ChangedMatrix,
    changed_matrices,
    is_adapter,
    model_between,
    run_model,
    shared_matrices,
)
from ltmia.weights.backward import MatrixPlaces, TextGradients
from ltmia.weights.cells import find_cells
from ltmia.weights.low_rank import row_space
from ltmia.weights.rounding import observe_update

HALF = (torch.bfloat16, torch.float16)
TRIAL_LENGTH, TRIED = 6, 512
"""Tokens of a trial text, and coordinates of a matrix that are compared."""
TRIAL_TOLERANCE = 1e-3
"""Largest relative difference, in 2-norm, between gradients from a batch and from each text alone."""
HALF_TRIAL_TOLERANCE = 5e-2
"""The same for matrices stored in half precision."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coordinates:
    """The coordinates to read, matrix by matrix, and the update at them."""

    places: tuple[MatrixPlaces, ...]
    """Coordinates of each matrix."""
    batched: bool
    """Whether one backward pass gives the gradients of several texts."""
    change: Float64[np.ndarray, " coordinate"]
    """Target minus base at the coordinates, as well as the target's stored numbers tell it; see `observe_update`."""
    rounding: Float64[np.ndarray, " coordinate"]
    """Variance of `change` by the rounding of the target's stored numbers: 0 if they are exact, infinite if they tell
    nothing."""
    layers: tuple[int, ...]
    """Layers of the coordinates."""
    n_available: int
    """Number of coordinates that the sample was drawn from."""
    unread: float = 0.0
    """Share of the weights in these layers' changed matrices that lie in matrices that cannot be read."""
    digest: str = field(default="")
    """Hash of the places."""

    def __len__(self) -> int:
        return len(self.change)

    @property
    def is_low_rank(self) -> bool:
        """Whether the update is of low rank, as of a merged adapter, and is read in the spaces of its rows."""
        return any(place.rows is not None for place in self.places)


def choose_coordinates(pair: Pair, *, n_coordinates: int, n_layers: int | None, seed: int) -> Coordinates:
    """Draw coordinates at random from the matrices of the last layers that fine-tuning changed.

    Matrices of linear layers are preferred, because one backward pass gives the gradients of many texts. If the last
    layers have none, other weights of two or more axes are read, one text at a time. Norms, biases, embeddings and the
    output head are never read.

    Args:
        pair: Target and base.
        n_coordinates: Largest number of coordinates; divided among the matrices by size.
        n_layers: Number of layers, counted from the output; None: all that changed.
        seed: Seed of the draw.

    Raises:
        ModelError: If nothing changed, or the two models cannot be compared; see `changed_matrices`.
    """
    changed = changed_matrices(pair)
    _check_begins_at_base(pair)
    layers = sorted({matrix.layer for matrix in changed})
    layers = layers if n_layers is None else layers[-n_layers:]
    near = [matrix for matrix in changed if matrix.layer in layers]
    readable = _read_in_batches(pair, [matrix for matrix in near if matrix.layout != "other"])
    chosen = readable or near
    bases = _row_spaces(chosen)
    sizes = np.array([_size(matrix, rows) for matrix, rows in zip(chosen, bases, strict=True)])
    rng = np.random.default_rng(seed)
    places, change, rounding = [], [], []
    for matrix, rows, size, count in zip(chosen, bases, sizes, _shares(sizes, n_coordinates), strict=True):
        place = MatrixPlaces.of(matrix, np.sort(rng.choice(size, count, replace=False)), rows)
        places.append(place)
        observed, noise = _observed(matrix, place)
        change.append(observed)
        rounding.append(noise)
    _check_update(change, places, int(sizes.sum()))
    if not any(np.isfinite(noise).any() for noise in rounding):
        raise ModelError("the target's weights are stored so coarsely that the update cannot be seen in them")
    return Coordinates(
        places=tuple(places),
        batched=bool(readable),
        change=np.concatenate(change),
        rounding=np.concatenate(rounding),
        layers=tuple(layers),
        n_available=int(sizes.sum()),
        unread=1 - sum(matrix.target.numel() for matrix in chosen) / sum(matrix.target.numel() for matrix in near),
        digest=_digest(places),
    )


def read_coordinates(pair: Pair, coordinates: Coordinates) -> Coordinates:
    """Return the same coordinates with the update of another target of the same base, such as an earlier checkpoint.

    Args:
        pair: The other target and the base.
        coordinates: Coordinates that were chosen for the first target.

    Raises:
        ModelError: If the other target lacks one of the matrices, or holds numbers that are not finite.
    """
    found = {matrix.name: matrix for matrix in shared_matrices(pair)}
    for place in coordinates.places:
        if place.name not in found or tuple(found[place.name].target.shape) != place.shape:
            raise ModelError(
                f"{pair.target_origin.source}: no {place.name} of shape {place.shape}, which the target has: is it a "
                "checkpoint of the same training run, in the same form (adapter or whole model)?"
            )
    change, rounding = zip(*(_observed(found[place.name], place) for place in coordinates.places), strict=True)
    _check_finite(change, coordinates.places)
    return replace(coordinates, change=np.concatenate(change), rounding=np.concatenate(rounding))


def _check_finite(change: Sequence[Float64[np.ndarray, " _"]], places: Sequence[MatrixPlaces]) -> None:
    for values, place in zip(change, places, strict=True):
        if not np.isfinite(values).all():
            raise ModelError(
                f"target minus base is not a finite number at {int((~np.isfinite(values)).sum())} of "
                f"{len(values)} coordinates of {place.name}: the weights of one of the two are broken"
            )


def _check_update(
    change: Sequence[Float64[np.ndarray, " _"]], places: Sequence[MatrixPlaces], n_available: int
) -> None:
    _check_finite(change, places)
    if not any(values.any() for values in change):
        raise ModelError(
            f"target and base are the same at all {sum(map(len, change))} coordinates drawn out of {n_available}: too "
            "few weights changed for an update to be read"
        )


def _check_begins_at_base(pair: Pair) -> None:
    """Refuse an adapter that is not the base when its path begins, because a part of it was trained that is unknown."""
    if not is_adapter(pair):
        return
    with model_between(pair, 0.0) as runner:
        start = _trial_logits(pair, runner)
    base = _trial_logits(pair, pair.reference_runner)
    error, size = (torch.linalg.vector_norm(x).item() for x in (start - base, base))
    tolerance = HALF_TRIAL_TOLERANCE if pair.dtype in HALF else TRIAL_TOLERANCE
    if error > tolerance * size:  # NaN passes: broken weights are found by their gradients
        raise ModelError(
            f"the target with an adapter of zeros is not the base: its logits differ by {error / size:.1g} of their "
            "size, so the adapter trains a part that is not known: merge it into the target (`merge_and_unload`)"
        )


def _trial_logits(pair: Pair, runner: ModelRunner) -> Float32[Tensor, "pred vocab"]:
    ids = (torch.arange(TRIAL_LENGTH, device=pair.device) % pair.vocab_size)[None]
    states = runner.hidden_states(ids, torch.ones_like(ids))[0]
    return runner.float32_head()(states)[:, : pair.vocab_size].clone()


def _shares(sizes: Int64[np.ndarray, " matrix"], total: int) -> Int64[np.ndarray, " matrix"]:
    """Divide a number of coordinates in proportion to sizes: each matrix gets at least one, and no more than it has."""
    total = min(total, int(sizes.sum()))
    bounds = np.floor(np.cumsum(sizes) * (total / sizes.sum()) + 0.5).astype(np.int64)
    return np.clip(np.diff(bounds, prepend=0), 1, sizes)


def _row_spaces(matrices: Sequence[ChangedMatrix]) -> list[Float32[Tensor, "rank in"] | None]:
    """Return the subspaces of all matrices if each changed by a low rank, as a merged adapter does; else none."""
    found: list[Float32[Tensor, "rank in"]] = []
    for matrix in matrices:
        rows = row_space(matrix)
        if rows is None:
            return [None] * len(matrices)
        found.append(rows)
    return list(found)


def _size(matrix: ChangedMatrix, rows: Float32[Tensor, "rank in"] | None) -> int:
    """Return how many coordinates a matrix has, or its part in a subspace of its rows."""
    return matrix.target.numel() if rows is None else matrix.target.numel() // rows.shape[1] * len(rows)


def _change(matrix: ChangedMatrix, place: MatrixPlaces) -> Float64[np.ndarray, " coordinate"]:
    target = matrix.target.detach()
    if place.rows is not None and matrix.base is not None:
        return _numbers(place.values(target.float() - matrix.base.detach().to(target.device).float()))
    change = _numbers(place.values(target))
    return change if matrix.base is None else change - _numbers(place.values(matrix.base.detach()))


def _numbers(values: Tensor) -> Float64[np.ndarray, " coordinate"]:
    return values.cpu().double().numpy()


def _observed(
    matrix: ChangedMatrix, place: MatrixPlaces
) -> tuple[Float64[np.ndarray, " coordinate"], Float64[np.ndarray, " coordinate"]]:
    """Return the update at the coordinates, and the variance that the rounding of the target gives it."""
    cells = find_cells(matrix.target)
    if cells is None:
        return _change(matrix, place), np.zeros(len(place.flat))
    change = _change(replace(matrix, target=cells.middle), place)
    if place.rows is not None:  # a sum over many cells, whose errors are nearly normal together
        return change, _numbers(place.variances(cells.width.square() / 12))
    return observe_update(change, _numbers(place.values(cells.width)))


def _digest(places: Sequence[MatrixPlaces]) -> str:
    digest = hashlib.sha256()
    for place in places:
        digest.update(f"{place.name} {place.layout} {len(place.flat)} ".encode())
        digest.update(np.ascontiguousarray(place.flat).tobytes())
        if place.rows is not None:
            digest.update(place.rows.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read_in_batches(pair: Pair, matrices: Sequence[ChangedMatrix]) -> list[ChangedMatrix]:
    """Return the matrices whose gradients are the same from a batch and from each text alone.

    Some layers use a weight without calling its module, and some get their tokens sorted by expert.
    """
    if not matrices:
        return []
    rng = np.random.default_rng(0)
    draws = [rng.choice(matrix.target.numel(), min(matrix.target.numel(), TRIED), replace=False) for matrix in matrices]
    places = [MatrixPlaces.of(matrix, np.sort(flat)) for matrix, flat in zip(matrices, draws, strict=True)]
    texts = [np.arange(TRIAL_LENGTH) % pair.vocab_size, np.arange(TRIAL_LENGTH - 1)[::-1] % pair.vocab_size]
    together, alone = _trial_gradients(pair, places, texts)
    kept, start = [], 0
    for matrix, place in zip(matrices, places, strict=True):
        part = slice(start, start + len(place.flat))
        start = part.stop
        error, size = (torch.linalg.vector_norm(x).item() for x in (together[:, part] - alone[:, part], alone[:, part]))
        tolerance = HALF_TRIAL_TOLERANCE if matrix.target.dtype in HALF else TRIAL_TOLERANCE
        if size > 0 and error <= tolerance * size:
            kept.append(matrix)
    if not kept and any(matrix.layout == "linear" for matrix in matrices) and not bool(alone.isfinite().all()):
        raise ModelError("the gradients of a short text are not finite numbers: the target's weights are broken")
    return kept


def _trial_gradients(
    pair: Pair, places: Sequence[MatrixPlaces], texts: Sequence[Int64[np.ndarray, " _"]]
) -> tuple[Float32[Tensor, "text coordinate"], Float32[Tensor, "text coordinate"]]:
    """Return the gradients of the target from one batch, and from each text alone.

    Raises:
        ModelError: If the target cannot be differentiated.
    """
    model, runner = run_model(pair, 1.0), pair.target_runner
    try:
        with TextGradients(model, runner, places, batched=True) as gradients:
            together = gradients(texts, [1] * len(texts))
        with TextGradients(model, runner, places, batched=False) as gradients:
            alone = torch.cat([gradients([text], [1]) for text in texts])
    except RUN_ERRORS as error:
        raise ModelError(
            f"the target gives no gradients: {type(error).__name__}: {str(error)[:300]}; load it as plain float32 or "
            "bfloat16 weights, outside of `torch.inference_mode`"
        ) from error
    return together, alone
