"""Start processes that have the libraries loaded and share no thread with this one, and show where a process hangs.

A forked process gets only one thread of its parent. If the parent's libraries computed with several, the child waits
for ever for the others. So nothing is forked from here: Python's fork server, which loads modules and never computes,
starts each process. What a process prints goes to a log.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
COMMANDS = (
    "ltmia.cli.app", "ltmia.data.reading", "ltmia.models.loading", "ltmia.finetuning.finetune", "ltmia.auditing.audit",
    "ltmia.auditing.score", "ltmia.lab.run", "ltmia.lab.evaluate", "ltmia.auditing.doctor", "pyarrow.parquet",
)  # fmt: skip
"""Modules that the commands of `ltmia` load."""
STARTING_SECONDS = 120
"""What the server may take to load the modules and to start the first process."""
DUMPING_SECONDS = 20
FAILED = 70
"""Exit code of a process whose work raised."""


def preload(*modules: str) -> None:
    """Have the server load modules once, for every process to come; call it before the first `start`."""
    CONTEXT.set_forkserver_preload(list(modules))
    # Only through this variable does the server find the modules beside this file.
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), known)))


@dataclass(frozen=True, slots=True)
class Child:
    """A process at work, the leader of a process group of its own."""

    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        """Its process id, and the id of its group."""
        assert self.process.pid is not None, "it has been started"
        return self.process.pid

    def ended(self, seconds: float | None) -> int | None:
        """Wait for its end, as long as it takes or so many seconds; return the exit code, or None if it still runs.

        The code is negative where a signal ended it.
        """
        self.process.join(seconds)
        return self.process.exitcode

    def where_it_hangs(self) -> str:
        """End the whole group; return what every thread of the process was doing, as Python's stacks.

        The group's other processes write theirs where their own errors go.
        """
        already = self.log.stat().st_size
        for kind, seconds in ((signal.SIGABRT, DUMPING_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, kind)
            self.process.join(seconds)
        return self.log.read_bytes()[already:].decode("utf-8", "replace") or "nothing was written"


def start(work: Callable[..., object], arguments: Sequence[Any], log: Path) -> Child:
    """Start work in a process of its own; return when it begins.

    Args:
        work: A function of a module. Exit code 0 if it returns, `FAILED` if it raises, or what it exits with.
        arguments: Its arguments.
        log: Gets what the process prints, behind what is there.

    Raises:
        RuntimeError: If the process does not begin in time.
    """
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_begin, args=(work, tuple(arguments), log, theirs))
    process.start()
    theirs.close()
    with ours:
        try:
            begun = ours.poll(STARTING_SECONDS) and ours.recv()
        except EOFError:
            begun = False
    if not begun:
        process.kill()
        raise RuntimeError(f"{log}: no process began within {STARTING_SECONDS} s; exit code {process.exitcode}")
    return Child(process, log)


def _begin(work: Callable[..., object], arguments: tuple[Any, ...], log: Path, ready: Connection) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # SIGABRT then writes where each thread stands, here and in the processes that this one starts.
    faulthandler.enable()
    os.environ["PYTHONFAULTHANDLER"] = "1"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = FAILED
    ready.send(True)
    ready.close()
    try:
        work(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001  the outermost frame of a process: Python would print it too
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # at once: a signal while the interpreter shuts down says nothing about the work


def run_command(*arguments: str) -> None:
    """Run `ltmia ARGUMENTS` in this process: the work of `start`."""
    from ltmia.__main__ import main

    sys.argv = ["ltmia", *arguments]
    main()
