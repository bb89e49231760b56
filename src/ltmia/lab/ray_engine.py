"""The engine for more than one machine: each step a Ray task. Imported only on demand; needs the extra `ray`.

All machines must see the lab's folder, the corpora and the bases under the same paths.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ltmia.errors import ConfigError
from ltmia.lab.engine import MAX_ATTEMPTS, Failure, Perform, Result, Schedule, Watcher, attempt, settle
from ltmia.lab.steps import CombinationWork, ExtractWork, Step
from ltmia.workers import connect


@dataclass(slots=True)
class RayEngine:
    """Steps as Ray tasks of one CPU, and of one GPU where the recipe's models run on one."""

    n_workers: int | None = None
    """Largest number of steps at once; None for as many as the cluster has CPUs."""
    attempts: dict[str, int] = field(default_factory=dict)
    """Times each step has begun, by key."""

    def run(self, steps: Sequence[Step], perform: Perform, folder: Path, watcher: Watcher) -> None:
        """Do all that can be done, then return.

        Joins the cluster that `ray start` made here or that RAY_ADDRESS names; without one it
        starts Ray on this machine, with `n_workers` CPUs, and stops it at the end.

        Raises:
            ConfigError: If a step needs a GPU and the cluster has none.
        """
        ours = not ray.is_initialized()
        if ours:
            connect(self.n_workers)
        under_way: dict[Any, tuple[Step, float]] = {}
        try:
            _check_gpus(steps)
            schedule = Schedule(steps)
            while self._submit(schedule, under_way, perform, folder, watcher):
                for reference in ray.wait(list(under_way), num_returns=1)[0]:
                    step, started = under_way.pop(reference)
                    self._collect(reference, step, time.monotonic() - started, schedule, watcher)
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _submit(
        self,
        schedule: Schedule,
        under_way: dict[Any, tuple[Step, float]],
        perform: Perform,
        folder: Path,
        watcher: Watcher,
    ) -> bool:
        """Start the steps that the cluster has room for; return whether any step is running."""
        task = ray.remote(attempt)
        places = max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(under_way) < min(places, self.n_workers or places) and (step := schedule.next()) is not None:
            self.attempts[step.key] = self.attempts.get(step.key, 0) + 1
            watcher.begun(step, self.attempts[step.key])
            # Ray's own retries are off: the watcher is told of each attempt.
            placed = task.options(name=step.label, num_cpus=1, num_gpus=_n_gpus(step), max_retries=0)
            under_way[placed.remote(perform, step, folder)] = step, time.monotonic()
        return bool(under_way)

    def _collect(self, reference: Any, step: Step, seconds: float, schedule: Schedule, watcher: Watcher) -> None:
        try:
            answer: Result | Failure = ray.get(reference)
        except RayTaskError as error:
            answer = Failure(f"{type(error.cause).__name__}: {error.cause}", str(error))
        except RayError as error:  # the worker, its machine or its memory
            if self.attempts[step.key] < MAX_ATTEMPTS:
                schedule.again(step)
                return
            answer = Failure(f"its worker died {MAX_ATTEMPTS} times ({type(error).__name__})", str(error))
        settle(step, seconds, answer, schedule, watcher)


def _check_gpus(steps: Sequence[Step]) -> None:
    wanting = [step for step in steps if _n_gpus(step)]
    if wanting and not ray.cluster_resources().get("GPU"):
        raise ConfigError(
            f'{wanting[0].label}: the recipe says device = "cuda", but the Ray cluster has no GPU; '
            'join a machine that has one with `ray start --address`, or set device = "cpu"'
        )


def _n_gpus(step: Step) -> int:
    """Return how many GPUs a step takes; with device = "auto" none, because it is not known where it runs."""
    match step.work:
        case CombinationWork(device=device) | ExtractWork(of=CombinationWork(device=device)):
            return int(device.startswith("cuda"))
        case _:
            return 0
