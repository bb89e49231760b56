"""The attack on a training run: finds texts in the updates between its checkpoints.

A text that is seen once leaves its gradient in the update of one interval, and by momentum a part of it in the next. It
stands out more there than in the update of the whole run, because fewer texts share the interval, and because the
gradient changes less within it.
"""

import itertools
import shutil
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
    left_out: tuple[str, ...]
    """Checkpoints that end no interval, see `RunPath`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPath:
    """The updates from the base through checkpoints to the target, before any gradient is read."""

    states: "tuple[tuple[Checkpoint, Coordinates], ...]"
    """Checkpoints that end an interval, in the order of training, each with its update from the base."""
    left_out: tuple[str, ...]
    """Checkpoints with the weights of another one, of the base or of the target, and those after one with the target's
    weights, because the target is no later state than these."""


def read_path(attack: UpdateAttack, checkpoints: Sequence[Checkpoint]) -> RunPath:
    """Load checkpoints one at a time, and check that they lie between base and target. Nothing is run.

    Args:
        attack: The attack on the whole update, which chooses the coordinates.
        checkpoints: Checkpoints between base and target, in the order of training.

    Raises:
        ModelError: If a checkpoint cannot be loaded or does not fit the target, if all hold the weights of base or
            target, or if they are not on the way from one to the other.
    """
    target, base = attack.coordinates.change, np.zeros(len(attack.coordinates))
    changes, states, left_out, is_past = [base], [], [], False
    for checkpoint in checkpoints:
        coordinates = read_coordinates(checkpoint.load(), attack.coordinates)
        is_past |= np.array_equal(coordinates.change, target)
        if is_past or any(np.array_equal(coordinates.change, change) for change in changes):
            left_out.append(checkpoint.source)
            continue
        changes.append(coordinates.change)
        states.append((checkpoint, coordinates))
    if not states:
        raise ModelError(
            f"{', '.join(left_out) or 'no checkpoints'}: none holds other weights than base and target, so there is "
            "no interval to read: give checkpoints from within the training run"
        )
    _check_direction([checkpoint for checkpoint, _ in states], [*changes, target])
    return RunPath(states=tuple(states), left_out=tuple(left_out))


def score_run(
    attack: UpdateAttack,
    path: RunPath,
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
        attack: The attack on the whole update.
        path: The checkpoints, by `read_path`.
        folder: Folder for the gradients at the checkpoints; the same call resumes a killed run.
        identity: Hashes a pair: gradients of other models in the folder are thrown away.
        report: Called with progress.

    Raises:
        ModelError: If a checkpoint cannot be loaded, or is another one than `read_path` found.
        DataError: If too few texts have a gradient.
        StoreError: If the disk has no room.
    """
    whole, points = attack.gradients.finish(report), attack.config.points
    if points[0] != BASE or points[-1] != TARGET:
        raise ValueError(f"points = {points}: expected gradients at base and target")
    base = replace(attack.coordinates, change=np.zeros(len(attack.coordinates)))
    states = [_State("base", whole, 0, base)]
    for number, (checkpoint, coordinates) in enumerate(path.states):
        pair = checkpoint.load()
        if not np.array_equal(read_coordinates(pair, attack.coordinates).change, coordinates.change):
            raise ModelError(f"{checkpoint.source}: its weights changed while they were read: start again")
        place, batch_size = folder / str(number), attack.config.batch_size
        reader = GradientReader(
            pair, attack.encoded, coordinates, (TARGET,), place, identity=identity(pair), batch_size=batch_size
        )
        with closing(reader.file):
            states.append(_State(checkpoint.source, reader.finish(report), 0, coordinates))
    states.append(_State("target", whole, len(points) - 1, attack.coordinates))
    return _score_intervals(attack, states, path.left_out, report)


def forget_checkpoints(folder: Path, n_kept: int = 0) -> None:
    """Remove the gradients at checkpoints that an earlier run had more than this one."""
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.name.isdecimal() and int(place.name) >= n_kept:
            shutil.rmtree(place)


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


def _check_direction(checkpoints: Sequence[Checkpoint], changes: Sequence[Float64[np.ndarray, " coordinate"]]) -> None:
    """Refuse a path that turns back, as one does with checkpoints of another run, or in another order.

    On real runs the cosine between the updates of neighbouring intervals was at least .4; with two checkpoints swapped
    it was below -.7, with one of another run mostly below -.1. Training that swings to and fro turns back too, so
    checkpoints that are known to be of this run, and in order, are not refused.

    Args:
        checkpoints: Checkpoints between base and target.
        changes: Updates from the base to itself, to each checkpoint and to the target.
    """
    for checkpoint, before, here, after in zip(checkpoints, changes, changes[1:], changes[2:], strict=False):
        if not checkpoint.is_known and float((here - before) @ (after - here)) < 0:
            raise ModelError(
                f"{checkpoint.source}: the weights move back after it, so it is of another training run, checkpoints "
                "are not in the order of training, or the training swings to and fro: leave it out"
            )


def _score_intervals(
    attack: UpdateAttack, path: Sequence[_State], left_out: tuple[str, ...], report: Report
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
        explained.append(found.explained)
    return RunScores(
        score=logsumexp(log_odds, axis=0),
        by_interval=log_odds,
        explained=tuple(explained),
        checkpoints=tuple(state.name for state in path[1:-1]),
        left_out=left_out,
    )
