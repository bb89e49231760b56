"""The attack on a training run: finds texts in the updates between its checkpoints.

A text that is seen once leaves its gradient in the update of one interval, and by momentum a part of it in the next. It
stands out more there than in the update of the whole run, because fewer texts share the interval, and because the
gradient changes less within it.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.special import logsumexp

from ltmia.errors import DataError, ModelError
from ltmia.models.pair import Checkpoint, Pair
from ltmia.progress import Report, silent
from ltmia.weights.coordinates import Coordinates, read_coordinates
from ltmia.weights.gradient_file import GradientFile, GradientShape
from ltmia.weights.gradients import BASE, TARGET, GradientReader
from ltmia.weights.update_attack import FEWEST_TEXTS, UpdateAttack, explain_update


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """Result of the attack for each text; NaN for a text that lacks a gradient somewhere on the path."""

    score: Float64[np.ndarray, " text"]
    """For ranking: log-odds of having been used in any of the intervals; higher for a more likely member."""
    by_interval: Float64[np.ndarray, "interval text"]
    """Log-odds of having been used in each interval."""
    explained: tuple[float, ...]
    """Share of the update of each interval that the texts explain."""
    checkpoints: tuple[str, ...]
    """Checkpoints that were read, in the order of training."""
    unchanged: tuple[str, ...]
    """Checkpoints with the weights of another one, of the base or of the target: they end no interval."""


def score_run(
    attack: UpdateAttack,
    checkpoints: Sequence[Checkpoint],
    folder: Path,
    *,
    identity: Callable[[Pair], str],
    report: Report = silent,
) -> RunScores:
    """Score all texts by the updates between base, checkpoints and target.

    Each interval is one regression, as in `UpdateAttack`, with gradients at both of its ends. A text was used if it was
    used in any interval, so the odds of all intervals are added. Cost: a pass with gradients for each checkpoint, which
    are loaded one at a time. Disk: two bytes a coordinate, checkpoint and text.

    Args:
        attack: The attack on the whole update, which chooses the coordinates.
        checkpoints: Checkpoints between base and target, in the order of training.
        folder: Folder for the gradients at the checkpoints; the same call resumes a killed run.
        identity: Hashes a pair: gradients of other models in the folder are thrown away.
        report: Called with progress.

    Raises:
        ModelError: If a checkpoint cannot be loaded or does not fit the target, if all hold the weights of base or
            target, or if they are not on the way from one to the other.
        DataError: If too few texts have a gradient.
        StoreError: If the disk has no room.
    """
    whole, points = attack.gradients.finish(report), attack.config.points
    if points[0] != BASE or points[-1] != TARGET:
        raise ValueError(f"points = {points}: expected gradients at base and target")
    target = _State("target", whole, len(points) - 1, attack.coordinates)
    path = [_State("base", whole, 0, replace(attack.coordinates, change=np.zeros(len(attack.coordinates))))]
    unchanged = []
    for number, checkpoint in enumerate(checkpoints):
        pair = checkpoint.load()
        coordinates = read_coordinates(pair, attack.coordinates)
        if any(np.array_equal(coordinates.change, state.coordinates.change) for state in (*path, target)):
            unchanged.append(checkpoint.source)
            continue
        reader = GradientReader(
            pair, attack.encoded, coordinates, (TARGET,), folder / str(number), identity=identity(pair)
        )
        with closing(reader.file):
            path.append(_State(checkpoint.source, reader.finish(report), 0, coordinates))
    if len(path) == 1:
        raise ModelError(
            f"{', '.join(unchanged) or 'no checkpoints'}: none holds other weights than base and target, so there is "
            "no interval to read: give checkpoints from within the training run"
        )
    path.append(target)
    _check_direction(path)
    return _score_intervals(attack, path, tuple(unchanged), report)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Weights and gradients at one moment of the training run."""

    name: str
    file: GradientFile
    point: int
    """Place of the moment in the file."""
    coordinates: Coordinates
    """With the update from the base to this moment."""


@dataclass(frozen=True, slots=True, eq=False)
class _Interval:
    """Gradients at both ends of an interval, as `PathGradients`."""

    ends: tuple[_State, _State]

    @property
    def shape(self) -> GradientShape:
        return replace(self.ends[0].file.shape, n_points=len(self.ends))

    def block(self, point: int, rows: Int64[np.ndarray, " text"], part: slice) -> Float32[np.ndarray, "text coord"]:
        return self.ends[point].file.block(self.ends[point].point, rows, part)

    @property
    def coordinates(self) -> Coordinates:
        """The coordinates with the update of this interval; each end was rounded when it was stored."""
        start, end = (state.coordinates for state in self.ends)
        began = 0.0 if self.ends[0].name == "base" else start.rounding
        return replace(end, change=end.change - start.change, rounding=end.rounding + began)


def _check_direction(path: Sequence[_State]) -> None:
    """Refuse a path that turns back, as one does with checkpoints of another run, or in another order.

    On real runs the cosine between the updates of neighbouring intervals was at least .4; with two checkpoints swapped
    it was below -.7, with one of another run mostly below -.1.
    """
    changes = [state.coordinates.change for state in path]
    for before, state, after in zip(changes, path[1:], changes[2:], strict=False):
        if float((state.coordinates.change - before) @ (after - state.coordinates.change)) < 0:
            raise ModelError(
                f"{state.name}: the weights move back after it, so it is of another training run, or checkpoints are "
                "not in the order of training"
            )


def _score_intervals(
    attack: UpdateAttack, path: Sequence[_State], unchanged: tuple[str, ...], report: Report
) -> RunScores:
    scales = np.stack([state.file.scales[state.point] for state in path])
    rows = np.flatnonzero(np.isfinite(scales).all(axis=0) & (scales != 0).all(axis=0))
    if len(rows) < FEWEST_TEXTS:
        raise DataError(
            f"only {len(rows)} texts have a gradient at each checkpoint; at least {FEWEST_TEXTS} are needed"
        )
    log_odds, explained = np.full((len(path) - 1, scales.shape[1]), np.nan), []
    for number, ends in enumerate(itertools.pairwise(path)):
        interval = _Interval(ends)
        found = explain_update(interval, rows, interval.coordinates, attack.config, report)
        log_odds[number, rows] = found.usage.log_odds
        explained.append(found.solution.explained)
    return RunScores(
        score=logsumexp(log_odds, axis=0),
        by_interval=log_odds,
        explained=tuple(explained),
        checkpoints=tuple(state.name for state in path[1:-1]),
        unchanged=unchanged,
    )
