"""Engines run the steps of a lab. This module has their interface and the engine of N processes on this machine.

An engine handles order, retries and dead processes; a function it is given does the steps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ltmia.errors import LtmiaError
from ltmia.workers import ONE_THREAD

if TYPE_CHECKING:  # the engine does not need these modules, whose import takes seconds
    from ltmia.lab.steps import Step

MAX_ATTEMPTS = 2
"""Number of attempts: a step whose worker died is tried again, because the machine may have been the cause."""

Result = Mapping[str, Any]
Perform = Callable[["Step", Path], Result]
"""Does a step of the lab in a folder. It must be a function of a module, so that a new process can import it."""


class Watcher(Protocol):
    """Receives events of the steps, always in the process that started the engine."""

    def begun(self, step: Step, attempt: int) -> None:
        """A worker has taken the step."""

    def done(self, step: Step, seconds: float, result: Result) -> None:
        """The step is done."""

    def failed(self, step: Step, seconds: float, error: str, details: str | None) -> None:
        """The step failed and is not tried again."""

    def skipped(self, step: Step) -> None:
        """A step that this one needs failed."""


class Engine(Protocol):
    """Does steps, each after the steps that it needs. A failed step stops only those that need it."""

    def run(self, steps: Sequence[Step], perform: Perform, folder: Path, watcher: Watcher) -> None:
        """Do all that can be done, then return."""


class Schedule:
    """Keeps track of which steps may begin."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._waiting = list(steps)
        self._open = {step.key for step in steps}
        """Keys of the steps that are not done; steps that are not listed count as done."""

    @property
    def is_over(self) -> bool:
        """True if no step waits to begin; some may still be running."""
        return not self._waiting

    def next(self) -> Step | None:
        """Take the first step that can begin."""
        for step in self._waiting:
            if not self._open.intersection(step.needs):
                self._waiting.remove(step)
                return step
        return None

    def done(self, step: Step) -> None:
        """Mark a step as done, so that others may begin."""
        self._open.discard(step.key)

    def again(self, step: Step) -> None:
        """Put a step back, first in the line."""
        self._waiting.insert(0, step)

    def failed(self, step: Step) -> tuple[Step, ...]:
        """Remove and return all steps that need the failed one, directly or through other steps."""
        lost, keys = [], {step.key}
        for other in self._waiting:  # in order: what a step needs stands before it
            if keys.intersection(other.needs):
                keys.add(other.key)
                lost.append(other)
        self._waiting = [other for other in self._waiting if other.key not in keys]
        return tuple(lost)


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's answer for a step that raised an exception."""

    error: str
    details: str | None


def attempt(perform: Perform, step: Step, folder: Path) -> Result | Failure:
    """Do a step. Any exception becomes an answer, so that it does not stop the other steps."""
    try:
        return perform(step, folder)
    except Exception as error:  # noqa: BLE001  any failure of a step is the step's alone
        message = str(error) if isinstance(error, LtmiaError) else f"{type(error).__name__}: {error}"
        return Failure(message, traceback.format_exc())


def settle(step: Step, seconds: float, answer: Result | Failure, schedule: Schedule, watcher: Watcher) -> None:
    """Update the schedule after a worker's answer, and notify the watcher."""
    if isinstance(answer, Failure):
        watcher.failed(step, seconds, answer.error, answer.details)
        for lost in schedule.failed(step):
            watcher.skipped(lost)
    else:
        schedule.done(step)
        watcher.done(step, seconds, answer)


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    step: Step | None = None
    started: float = 0.0


@dataclass(slots=True)
class LocalEngine:
    """N processes on this machine, each with one thread."""

    n_workers: int
    attempts: dict[str, int] = field(default_factory=dict)
    """Times each step has begun, by key."""

    def run(self, steps: Sequence[Step], perform: Perform, folder: Path, watcher: Watcher) -> None:
        """Do all steps that can be done, then return. All workers are ended in any case."""
        schedule = Schedule(steps)
        workers = [_start(perform, folder, i) for i in range(min(self.n_workers, len(steps)))]
        try:
            while self._hand_out(schedule, workers, watcher):
                busy = [worker for worker in workers if worker.step is not None]
                ready = wait([worker.pipe for worker in busy])
                for worker in busy:
                    if worker.pipe in ready and not self._collect(worker, schedule, watcher):
                        place = workers.index(worker)
                        workers[place] = _start(perform, folder, place)
        finally:
            _stop(workers)

    def _hand_out(self, schedule: Schedule, workers: Sequence[_Worker], watcher: Watcher) -> bool:
        """Give steps to idle workers; return whether any worker is busy."""
        for worker in workers:
            if worker.step is None and (step := schedule.next()) is not None:
                self.attempts[step.key] = self.attempts.get(step.key, 0) + 1
                worker.step, worker.started = step, time.monotonic()
                watcher.begun(step, self.attempts[step.key])
                try:
                    worker.pipe.send(step)
                except OSError:
                    continue  # it died while idle; reading from it will say so
        return any(worker.step is not None for worker in workers)

    def _collect(self, worker: _Worker, schedule: Schedule, watcher: Watcher) -> bool:
        """Read a worker's answer; return whether the worker is alive."""
        step = worker.step
        if step is None:
            return True
        seconds = time.monotonic() - worker.started
        worker.step = None
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            self._died(step, seconds, worker.process.exitcode, schedule, watcher)
            return False
        settle(step, seconds, answer, schedule, watcher)
        return True

    def _died(self, step: Step, seconds: float, code: int | None, schedule: Schedule, watcher: Watcher) -> None:
        if self.attempts[step.key] < MAX_ATTEMPTS:
            schedule.again(step)
            return
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        message = (
            f"its worker process died {MAX_ATTEMPTS} times ({reason}; signal 9 often means that memory ran out: "
            "use fewer workers)"
        )
        settle(step, seconds, Failure(message, None), schedule, watcher)


def _start(perform: Perform, folder: Path, place: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = folder / "logs" / f"worker-{place}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_work, args=(theirs, perform, folder, log), daemon=True)
    with _one_thread():
        process.start()
    theirs.close()
    return _Worker(process=process, pipe=ours)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join()
        worker.process.close()


def _work(pipe: Connection, perform: Perform, folder: Path, log: Path) -> None:
    """Be a worker: do one step after another until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    while True:
        try:
            step = pipe.recv()
        except (EOFError, OSError):
            return
        print(f"{time.strftime('%F %T')} {step.label} {step.key[:12]}", flush=True)  # noqa: T201  into the log
        pipe.send(attempt(perform, step, folder))


def _die_with_parent() -> None:
    """End this process as soon as its parent process has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
