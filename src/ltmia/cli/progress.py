"""Shows progress: a bar with rate and time left on a terminal, plain lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ltmia.cli.flags import warn_in_flags
from ltmia.progress import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_SECONDS = 10.0
"""Seconds between two lines of progress if there is no terminal."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """Show progress on stderr while the block runs.

    Args:
        quiet: Show nothing.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda _task, _done, _total: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _on_bar(bar)
    else:
        yield _as_lines()


def _bar(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def _on_bar(bar: "Progress") -> Report:
    tasks: dict[str, TaskID] = {}

    def report(task: str, done: int, total: int) -> None:
        if task not in tasks:
            tasks[task] = bar.add_task(task, total=total, rate="")
        speed = bar.tasks[tasks[task]].finished_speed or bar.tasks[tasks[task]].speed
        rate = f"{speed:.1f}/s" if speed else ""
        bar.update(tasks[task], completed=done, total=total, rate=rate)

    return report


def _as_lines() -> Report:
    started: dict[str, float] = {}
    last = 0.0

    def report(task: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun = started.setdefault(task, now)
        if done < total and now - last < LINE_SECONDS:
            return
        last = now
        if done >= total:
            del started[task]  # a later run of the same task, as at the next checkpoint, has its own time
        line = f"{task}: {done}/{total}"
        if 0 < done < total and now > begun:
            line += f", about {(now - begun) / done * (total - done):.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return report


def calm_libraries(*, verbose: bool = False) -> None:
    """Silence bars, notices and warnings of libraries; send our own log to stderr.

    Args:
        verbose: Do not silence them.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ltmia").setLevel(logging.INFO)
    warn_in_flags()
    if verbose:
        return
    warnings.simplefilter("ignore", FutureWarning)
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("torch", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
