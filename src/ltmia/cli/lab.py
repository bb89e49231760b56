"""`ltmia lab`: runs a lab, and shows its state."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltmia.cli import options as o
from ltmia.cli.loading import needs_ray
from ltmia.cli.progress import progress
from ltmia.cli.settings import Commands

if TYPE_CHECKING:
    from rich.table import Table

    from ltmia.lab.engine import Engine
    from ltmia.lab.estimate import LabForecast
    from ltmia.lab.state import LabStatus, State, StepRecord

KINDS = ("tokenizer", "pretrain", "finetune", "extract")
STATES: "tuple[State, ...]" = ("done", "running", "failed", "to do")


lab_app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Fine-tune many bases on many corpora, and keep a labelled store of each combination.",
)


@lab_app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe: TOML file; docs/lab.md describes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the lab; running again resumes.")],
    corpora: Annotated[
        Path | None,
        typer.Option("--corpora", help="Folder that holds the corpora; default: the folder of the recipe."),
    ] = None,
    bases: Annotated[
        Path | None, typer.Option("--bases", help="Folder that holds the bases; default: the folder of the recipe.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes, one thread each; default: one per core."),
    ] = None,
    engine: Annotated[
        o.EngineName,
        typer.Option("--engine", help="local: this machine; ray: a Ray cluster (extra: ray)."),
    ] = o.EngineName.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and do nothing.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Do every step of a recipe that is not done yet; exit code 2 if a combination failed."""
    n_workers = workers or os.cpu_count() or 1
    from ltmia.lab.run import plan_lab, run_lab

    if dry_run:
        _print_forecast(plan_lab(recipe, out, workers=n_workers, corpora=corpora, bases=bases))
        return
    with progress(quiet=quiet) as report:
        status = run_lab(
            recipe,
            out,
            workers=n_workers,
            corpora=corpora,
            bases=bases,
            engine=_ray_engine(workers) if engine is o.EngineName.ray else None,
            report=report,
        )
    if not quiet:
        _print_status(status)
    _refuse_failures(status, out)


@lab_app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="Folder of a lab.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print every step as JSON instead of a table.")] = False,
) -> None:
    """Show which steps are done, running, failed or waiting, and how long they took."""
    from ltmia.lab.run import lab_status

    found = lab_status(folder)
    if as_json:
        print(_as_json(found))
    else:
        _print_status(found)


@lab_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a lab.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("lab.html"),
) -> None:
    """Write a page about a lab: what is done, what failed, and the AUC of attacks on each combination."""
    from ltmia.lab.page import lab_page
    from ltmia.lab.run import lab_status
    from ltmia.report.tables import write_tables

    write_tables(lab_page(folder, lab_status(folder)), out)
    print(out)


def _ray_engine(workers: int | None) -> "Engine":
    with needs_ray():
        from ltmia.lab.ray_engine import RayEngine
    return RayEngine(n_workers=workers)


def _refuse_failures(status: "LabStatus", out: Path) -> None:
    """Refuse to end normally if a combination has no store, and say why it has none.

    Raises:
        LtmiaError: If there is such a combination, or any other step failed.
    """
    from ltmia.errors import LtmiaError

    lost = [step.name for step in status.steps if step.kind == "extract" and step.state != "done"]
    if not status.failed and not lost:
        return
    lines = [f"{out}: {len(lost)} combinations have no store: {', '.join(lost)}"]
    lines += [f"{step.kind} {step.name} failed: {step.error}" for step in status.failed]
    lines.append(f"All others are done. The same command tries these again; {out}/steps/KEY.json has the tracebacks:")
    lines += [f"  {step.kind} {step.name}: KEY = {step.key}" for step in status.failed]
    raise LtmiaError("\n".join(lines))


def _as_json(status: "LabStatus") -> str:
    import json

    steps = [step.model_dump(mode="json") for step in status.steps]
    counts = {state: status.count(state) for state in STATES}
    return json.dumps({"running": status.running, "counts": counts, "steps": steps}, indent=1)


def _print_status(status: "LabStatus") -> None:
    from rich.console import Console

    console = Console()
    console.print(_kinds_table(status))
    for step in status.steps:
        if step.state == "running":
            console.print(f"running: {step.kind} {step.name}, for {_time(_seconds_since(step))}", markup=False)
    for step in status.failed:
        text = f"failed: {step.kind} {step.name}, after {_time(step.seconds)}: {step.error}"
        console.print(text, markup=False, highlight=False)
    if not status.running:
        done = status.count("done") == len(status.steps)
        console.print("Nothing is left to do." if done else "No lab is running here now; the same command resumes.")


def _kinds_table(status: "LabStatus") -> "Table":
    from rich.table import Table

    table = Table("step", *STATES, "time", "longest")
    for kind in KINDS:
        steps = [step for step in status.steps if step.kind == kind]
        if steps:
            table.add_row(kind, *_state_cells(steps), *_time_cells(steps))
    table.add_section()
    table.add_row("all", *_state_cells(status.steps), *_time_cells(status.steps))
    return table


def _state_cells(steps: "Sequence[StepRecord]") -> list[str]:
    return [str(sum(step.state == state for step in steps) or "") for state in STATES]


def _time_cells(steps: "Iterable[StepRecord]") -> tuple[str, str]:
    times = {step.name: step.seconds for step in steps if step.seconds is not None}
    if not times:
        return "", ""
    longest = max(times, key=lambda name: times[name])
    return _time(sum(times.values())), f"{longest}, {_time(times[longest])}"


def _seconds_since(step: "StepRecord") -> float | None:
    from datetime import UTC, datetime

    return None if step.started is None else (datetime.now(UTC) - step.started).total_seconds()


def _print_forecast(forecast: "LabForecast") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "name", "time", "memory", "disk", title="To do", title_justify="left")
    for step in forecast.to_do:
        table.add_row(step.kind, step.name, _time(step.seconds), _size(step.memory_bytes), _size(step.disk_bytes))
    console = Console()
    if forecast.to_do:
        console.print(table)
    n_done = len(forecast.steps) - len(forecast.to_do)
    unknown = sum(step.seconds is None for step in forecast.to_do)
    left_out = (
        f" Not counted: models and time of {unknown} steps on bases that are not downloaded yet." if unknown else ""
    )
    console.print(
        f"{len(forecast.to_do)} steps to do, {n_done} done or not needed. With {forecast.workers} workers about "
        f"{_time(forecast.seconds)}, {_size(forecast.memory_bytes)} of memory, "
        f"{_size(forecast.disk_bytes)} on disk.{left_out}",
        highlight=False,
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
