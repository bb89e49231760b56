"""Commands and scripts in processes of their own, without loading the libraries anew for each.

Loading them takes longer than most commands of the tests. So a server, one for each process that runs tests, has them
loaded once, and every command runs in a child forked from it, with its own folder, environment and outputs. What a user
starts from nothing is tested as such in test_end_to_end.py.
"""

import contextlib
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "ltmia.cli.app", "ltmia.data.reading", "ltmia.models.loading", "ltmia.finetuning.finetune", "ltmia.auditing.audit",
    "ltmia.auditing.score", "ltmia.lab.run", "ltmia.lab.evaluate", "ltmia.auditing.doctor",
)  # fmt: skip


def run_ltmia(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ltmia ARGUMENTS` as `subprocess.run(..., capture_output=True, text=True)` would."""
    return _run(["ltmia", *arguments], None, cwd, env)


def run_script(
    script: Path, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS`."""
    return _run([str(script), *arguments], str(script), cwd, env)


def _run(
    argv: list[str], script: str | None, cwd: Path | None, env: dict[str, str] | None
) -> subprocess.CompletedProcess[str]:
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        request = {
            "argv": argv,
            "script": script,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ) | (env or {}),
            "outputs": [str(path) for path in outputs],
        }
        try:
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        except BaseException:  # out of time, say: its answer would be taken for that to the next request
            server.kill()
            _server.cache_clear()
            raise
        return subprocess.CompletedProcess(argv, code, *(path.read_text("utf-8", "replace") for path in outputs))


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Run requests, one a line, until there are no more."""
    for module in MODULES:
        __import__(module)
    from quick import be_quick

    _compute_once()
    be_quick()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _child(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _compute_once() -> None:
    """Load kernel, fonts and page template, which each command would load anew; leaves no thread."""
    import torch

    from ltmia.features.statistics import token_statistics
    from ltmia.report.figures import calibration_figure
    from ltmia.report.page import template_environment

    torch.set_num_threads(1)
    token_statistics(torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), k=1)
    calibration_figure({}, 0.01)
    template_environment().get_template("report.html.j2")


def _child(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(request["outputs"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        _use_threads(int(request["env"].get("OMP_NUM_THREADS", "1")))
        sys.argv = request["argv"]
        if request["script"]:
            sys.path[0] = str(Path(request["script"]).parent)
            runpy.run_path(request["script"], run_name="__main__")
        else:
            runpy.run_module("ltmia", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:  # noqa: BLE001  the outermost frame of a process: it prints what it would
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _use_threads(n_threads: int) -> None:
    """Do what loading torch with OMP_NUM_THREADS in the environment would have done."""
    import torch

    torch.set_num_threads(n_threads)


if __name__ == "__main__":
    serve()
