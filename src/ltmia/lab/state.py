"""Records the state of a lab's steps in its folder: one small file per step, the plan, and the lock.

`steps/KEY.json` is written when a step begins and, last of all, when it has ended. `plan.json` lists
the steps of the newest recipe, so that the state can be told without it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from ltmia.errors import StoreError
from ltmia.features.store import FeatureStore
from ltmia.folders import is_held, list_files, remove_files, write_whole
from ltmia.lab.plan import Plan
from ltmia.lab.steps import Kind, Step

State = Literal["done", "running", "failed", "to do"]


class StepRecord(BaseModel):
    """State of one step."""

    model_config = ConfigDict(frozen=True)

    key: str
    kind: Kind
    name: str
    state: State = "to do"
    started: datetime | None = None
    seconds: float | None = None
    """Wall-clock time of the attempt that ended it."""
    attempts: int = 0
    error: str | None = None
    details: str | None = None
    """Traceback of the error."""
    result: dict[str, Any] = {}
    """Results of the step: losses, figures."""
    sizes: dict[str, int] = {}
    """Bytes of each file of the product; a product with a truncated file is made again."""
    digests: dict[str, str] = {}
    """SHA-256 of each file; a product with a changed file is made again. Empty for stores, which have their own
    hashes, and in records of older versions."""


class PlannedStep(BaseModel):
    """Entry of a step in the plan's file."""

    model_config = ConfigDict(frozen=True)

    key: str
    kind: Kind
    name: str
    passing: bool
    needs: tuple[str, ...]


class PlanFile(BaseModel):
    """Content of `plan.json`."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabStatus:
    """State of a lab: every step of its newest recipe."""

    running: bool
    """Whether a lab is running in this folder now."""
    steps: tuple[StepRecord, ...]

    def count(self, state: State) -> int:
        """Return the number of steps in a state."""
        return sum(step.state == state for step in self.steps)

    @property
    def failed(self) -> tuple[StepRecord, ...]:
        """Steps that failed and are still not done."""
        return tuple(step for step in self.steps if step.state == "failed")


@dataclass(frozen=True, slots=True)
class LabFolder:
    """A lab's folder."""

    root: Path

    @contextmanager
    def step_lock(self, step: Step) -> Iterator[None]:
        """Lock one step, because a worker of a killed lab may still run when the next lab begins."""
        (self.root / "steps").mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "steps" / f"{step.key}.lock"):
            yield

    def record(self, step: Step | PlannedStep) -> StepRecord:
        """Return the state of a step; empty if its file is missing or damaged."""
        try:
            return StepRecord.model_validate_json((self.root / "steps" / f"{step.key}.json").read_bytes())
        except (OSError, ValidationError):
            return StepRecord(key=step.key, kind=step.kind, name=step.name)

    def write(self, record: StepRecord) -> None:
        """Write the state of a step."""
        (self.root / "steps").mkdir(parents=True, exist_ok=True)
        _replace(self.root / "steps" / f"{record.key}.json", record.model_dump_json(indent=1))

    def begin(self, step: Step, attempt: int) -> None:
        """Note that a step has begun."""
        now = datetime.now(UTC)
        self.write(
            StepRecord(key=step.key, kind=step.kind, name=step.name, state="running", started=now, attempts=attempt)
        )

    def end(self, step: Step, *, seconds: float, result: Mapping[str, Any]) -> None:
        """Note that a step is done, so that its product is valid."""
        changed = {"state": "done", "seconds": round(seconds, 1), "result": dict(result)}
        files = list_files(step.product)
        changed["sizes"] = _sizes(step.product, files)
        changed["digests"] = {} if step.kind == "extract" else _digests(step.product, files)
        self.write(self.record(step).model_copy(update=changed))

    def fail(self, step: Step, *, seconds: float, error: str, details: str | None) -> None:
        """Note that a step failed."""
        changed = {"state": "failed", "seconds": round(seconds, 1), "error": error, "details": details}
        self.write(self.record(step).model_copy(update=changed))

    def satisfied(self, plan: Plan) -> frozenset[str]:
        """Return the keys of the steps that are done and have complete products."""
        return frozenset(step.key for step in plan.steps if self._is_whole(step))

    def discard_damaged(self, steps: Sequence[Step]) -> None:
        """Delete remains of products that were complete once, so that they are not taken for complete ones.

        Args:
            steps: Steps whose products are missing or incomplete. Files of a killed step are kept, to resume from.
        """
        for step in steps:
            if self.record(step).state == "done":
                self.discard(step)

    def discard(self, step: Step) -> None:
        """Delete the files made by a finished step; other files stay."""
        remove_files(step.product, self.record(step).sizes)

    def write_plan(self, plan: Plan) -> None:
        """Write the list of steps, for `status`."""
        steps = [PlannedStep(key=s.key, kind=s.kind, name=s.name, passing=s.passing, needs=s.needs) for s in plan.steps]
        _replace(self.root / "plan.json", PlanFile(steps=tuple(steps)).model_dump_json(indent=1))

    def status(self) -> LabStatus:
        """Return the state of every step.

        Raises:
            StoreError: If this is not a lab's folder.
        """
        try:
            plan = PlanFile.model_validate_json((self.root / "plan.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise StoreError(f"{self.root}: no lab has run here (no readable plan.json)") from error
        running = is_held(self.root)
        records = [self.record(step) for step in plan.steps]
        if not running:  # what was begun by a lab that was killed
            records = [r.model_copy(update={"state": "to do"}) if r.state == "running" else r for r in records]
        return LabStatus(running=running, steps=tuple(records))

    def _is_whole(self, step: Step) -> bool:
        record = self.record(step)
        if record.state != "done" or not record.sizes or _sizes(step.product, record.sizes) != record.sizes:
            return False
        if step.kind != "extract":
            return not record.digests or _digests(step.product, record.digests) == record.digests
        try:  # a store checks its files itself
            return bool(FeatureStore(step.product).manifest.get("step") == step.key)
        except StoreError:
            return False


def _digests(product: Path, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in _sizes(product, names):
        with (product / name).open("rb") as file:
            found[name] = file_digest(file, "sha256").hexdigest()
    return found


def _sizes(product: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of a product's files that exist; other files are ignored."""
    return {name: (product / name).stat().st_size for name in names if (product / name).is_file()}


def _replace(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    write_whole(path, lambda part: part.write_text(text, "utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: If it is not readable.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); run the lab again") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file completely or not at all."""
    _replace(path, json.dumps(value, indent=1, sort_keys=True))
