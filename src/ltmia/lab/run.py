"""Runs a lab: from a recipe to one labelled store per combination. A killed run resumes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ltmia.errors import ConfigError, DataError
from ltmia.folders import claim_folder
from ltmia.lab.engine import Engine, LocalEngine, Result
from ltmia.lab.estimate import LabForecast, forecast_steps
from ltmia.lab.plan import Plan, make_plan
from ltmia.lab.reading import read_recipe
from ltmia.lab.state import LabFolder, LabStatus
from ltmia.lab.steps import CombinationWork, Step
from ltmia.lab.texts import corpus_texts, pool_buckets
from ltmia.lab.work import perform
from ltmia.ownership import Marker
from ltmia.progress import Report, silent


def run_lab(
    recipe: Path | str,
    out: Path | str,
    *,
    workers: int = 1,
    corpora: Path | str | None = None,
    bases: Path | str | None = None,
    engine: Engine | None = None,
    report: Report = silent,
) -> LabStatus:
    """Do all steps of a recipe that are not done. The same call resumes after a kill.

    Stores appear as `out/stores/BASE.CORPUS.REGIME`. A step that fails stops only those that need it.

    Args:
        recipe: TOML file.
        out: Folder of the lab.
        workers: Processes, one thread each; best the number of cores.
        corpora: Folder that paths of corpora are relative to; the recipe's folder when None.
        bases: Folder that paths of bases are relative to; the recipe's folder when None.
        engine: Engine that runs the steps; processes on this machine when None.
        report: Called with the number of steps done.

    Returns:
        The state of every step; `failed` names what went wrong.

    Raises:
        ConfigError: If the recipe is wrong, something it names is not there, another lab is at work in `out`, or `out`
            holds something else.
        DataError: If a corpus is damaged, or too small for a combination.
    """
    if workers < 1:
        raise ConfigError(f"workers = {workers}: expected at least 1")
    folder = LabFolder(Path(out).resolve())
    plan = _plan(Path(recipe), folder.root, corpora, bases)
    with claim_folder(folder.root, Marker(kind="a lab")):
        folder.write_plan(plan)
        satisfied = folder.satisfied(plan)
        to_do = plan.to_do(satisfied)
        check_pools(to_do)
        folder.discard_damaged(to_do)
        watcher = _Watcher(folder, plan, report, len(to_do))
        watcher.clean(satisfied)
        if to_do:
            report("steps", 0, len(to_do))
            (engine or LocalEngine(n_workers=workers)).run(to_do, perform, folder.root, watcher)
    return folder.status()


def plan_lab(
    recipe: Path | str,
    out: Path | str,
    *,
    workers: int = 1,
    corpora: Path | str | None = None,
    bases: Path | str | None = None,
) -> LabForecast:
    """Estimate what `run_lab` would do and cost; nothing is written or downloaded.

    Args and errors are those of `run_lab`.
    """
    folder = LabFolder(Path(out).resolve())
    plan = _plan(Path(recipe), folder.root, corpora, bases)
    to_do = plan.to_do(folder.satisfied(plan))
    check_pools([s for s in to_do if isinstance(s.work, CombinationWork) and s.work.corpus.is_here])
    return forecast_steps(plan.steps, to_do, workers)


def lab_status(out: Path | str) -> LabStatus:
    """Return which steps are done, running, failed or waiting, and how long they took.

    Raises:
        StoreError: If no lab has run in this folder.
    """
    return LabFolder(Path(out).resolve()).status()


def check_pools(steps: Sequence[Step]) -> None:
    """Refuse combinations that ask for more texts than their corpus has, before any work starts.

    Raises:
        DataError: If there are any; the message names each.
    """
    short = []
    for work in (step.work for step in steps if isinstance(step.work, CombinationWork)):
        regime = work.regime
        wanted = regime.n_members + regime.n_nonmembers + regime.n_validation
        there = _pool_size(work)
        if wanted > there:
            short.append(
                f"{work.combination.name}: {wanted} texts are wanted, but {work.corpus.name} has {there} that may be "
                "fine-tuned on; lower n_members or n_nonmembers of the regime"
            )
    if short:
        raise DataError("\n".join(short))


def _pool_size(work: CombinationWork) -> int:
    return len(corpus_texts(work.corpus, pool_buckets(work.corpus)))


def _plan(recipe: Path, out: Path, corpora: Path | str | None, bases: Path | str | None) -> Plan:
    here = recipe.parent
    return make_plan(
        read_recipe(recipe),
        out,
        corpora=here if corpora is None else Path(corpora),
        bases=here if bases is None else Path(bases),
    )


@dataclass(slots=True)
class _Watcher:
    """Records the state of steps, and deletes fine-tuned models that no step needs any more."""

    folder: LabFolder
    plan: Plan
    report: Report
    n_steps: int
    n_over: int = 0
    finished: set[str] = field(default_factory=set)

    def begun(self, step: Step, attempt: int) -> None:
        self.folder.begin(step, attempt)

    def done(self, step: Step, seconds: float, result: Result) -> None:
        self.folder.end(step, seconds=seconds, result=result)
        self.finished.add(step.key)
        self.clean(frozenset(self.finished))
        self._over()

    def failed(self, step: Step, seconds: float, error: str, details: str | None) -> None:
        self.folder.fail(step, seconds=seconds, error=error, details=details)
        self._over()

    def skipped(self, step: Step) -> None:  # noqa: ARG002  its record still says "to do"
        self._over()

    def clean(self, done: frozenset[str]) -> None:
        """Delete each fine-tuned model whose stores are all there."""
        self.finished |= done
        for step in self.plan.steps:
            if step.kind == "finetune" and step.passing and step.product.exists():
                readers = [other.key for other in self.plan.steps if step.key in other.needs]
                if self.finished.issuperset(readers):
                    self.folder.discard(step)

    def _over(self) -> None:
        self.n_over += 1
        self.report("steps", self.n_over, self.n_steps)
