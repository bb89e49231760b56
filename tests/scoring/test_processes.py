"""Batches shared out to the processes of a launcher: the same records as in one process, and clear errors."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from commands import run_ltmia
from killed import renew_threads
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError, ModelError
from ltmia.evaluation.files import read_results
from ltmia.finetuning.perturbed import save_perturbed
from ltmia.models.loading import load_pair
from ltmia.scoring import processes
from ltmia.scoring.audited_pair import PairToLoad
from ltmia.scoring.processes import ProcessEndedError, runs_the_command, serve, shared_out

TEXTS = demo_texts().texts
MEMBERS, NONMEMBERS = (*TEXTS[:20], "", "one"), TEXTS[300:330]
CONFIG = AuditConfig(attacks="ltmia,loss,dc_pdd", max_length=32, batch_size=4)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "target"
    save_perturbed(demo_base_path(), folder)
    return folder


def to_load(target: Path) -> PairToLoad:
    base = str(demo_base_path())
    load = partial(load_pair, str(target), base, dtype="float32", device="cpu")
    return PairToLoad(sources=(str(target), base), load=load)


def _serve(load: Callable[[], Any]) -> None:
    renew_threads()  # a launcher starts processes afresh
    serve(load)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[PairToLoad]]:
    """Starts other processes as a launcher would, and makes this one the first."""

    def start(target: Path, others: list[Path]) -> AbstractContextManager[PairToLoad]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for name, value in (("WORLD_SIZE", 1 + len(others)), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, str(value))
        for rank, found in enumerate(others, start=1):
            monkeypatch.setenv("RANK", str(rank))
            multiprocessing.get_context("fork").Process(target=_serve, args=(to_load(found).load,), daemon=True).start()
        monkeypatch.setenv("RANK", "0")
        return shared_out(to_load(target))

    return start


@pytest.mark.parametrize("n_others", [1, 2])
def test_processes_give_the_files_of_one_process(target, launched, tmp_path, n_others):
    audit(to_load(target), MEMBERS, NONMEMBERS, tmp_path / "one", config=CONFIG)
    shared = tmp_path / "shared"
    (shared / "private").mkdir(parents=True)
    for name in (".ltmia.json", "private/salt"):  # with one salt, ties are broken alike
        shutil.copy(tmp_path / "one" / name, shared / name)
    with launched(target, [target] * n_others) as pair:
        audit(pair, MEMBERS, NONMEMBERS, shared, config=CONFIG)
    one, several = (pq.read_table(folder / "records.parquet") for folder in (tmp_path / "one", shared))
    assert str(one.to_pydict()) == str(several.to_pydict())  # as text, for NaN is not NaN
    rows = "private/store/tokens.f16"
    assert (shared / rows).read_bytes() == (tmp_path / "one" / rows).read_bytes()
    assert all(child.exitcode is not None or not child.join(30) for child in multiprocessing.active_children())
    timing = read_results(shared).timing
    assert timing.forward_seconds + timing.feature_seconds <= timing.seconds  # the mean of the processes, not the sum


def test_a_process_without_a_batch_is_not_asked(target, launched, tmp_path):
    """Six texts make two batches, so process 2 never looks at its models. It would find none there."""
    with launched(target, [target, tmp_path / "no model"]) as pair:
        audit(pair, TEXTS[:3], TEXTS[300:303], tmp_path / "out", config=CONFIG)
    assert pq.read_table(tmp_path / "out/records.parquet").num_rows == 6


def _crash() -> None:
    raise KeyError("oops")


def _refuse() -> None:
    raise ModelError("oops")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("n_batches", [1, None], ids=["between two batches", "after its last batch"])
@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (_crash, RuntimeError, "process 1 of the launcher: KeyError: 'oops'"),
        (_refuse, ModelError, "process 1 of the launcher: oops"),
        (_die, ProcessEndedError, "process 1 of the launcher ended before its work was done"),
    ],
)
def test_a_process_that_fails_says_why_in_process_0(
    target, launched, tmp_path, monkeypatch, n_batches, end, error, message
):
    """An error that process 0 does not read would keep both waiting for good."""
    extract = processes.extract_batches

    def failing(*args):
        yield from islice(extract(*args), n_batches)
        end()

    monkeypatch.setattr(processes, "extract_batches", failing)  # process 0 has another name for it
    with pytest.raises(error, match=message), launched(target, [target]) as pair:
        audit(pair, MEMBERS, NONMEMBERS, tmp_path / "out", config=CONFIG)


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "many"), ("RANK", "first")])
def test_a_variable_that_is_no_number_is_named(monkeypatch, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}: launchers such as torchrun set this to a number"):
        runs_the_command()


def test_a_rank_beyond_the_number_of_processes_is_refused_at_once(monkeypatch):
    """Without this, torch waits five minutes, deaf to Ctrl-C."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK=2: expected a number from 0 to WORLD_SIZE - 1 = 1"):
        serve(_crash)


def test_batches_that_are_done_are_not_run_again(target, launched, tmp_path):
    """A killed run's batches stay, whether one process made them or several."""

    def stop(task: str, done: int, _total: int) -> None:
        if task == "scoring" and done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(to_load(target), MEMBERS, NONMEMBERS, tmp_path, config=CONFIG, report=stop)
    with launched(target, [target]) as pair:
        result = audit(pair, MEMBERS, NONMEMBERS, tmp_path, config=CONFIG)
    (reused,) = result.results.reused
    assert 10 < reused.n_texts < 52


def test_a_process_with_other_models_is_refused(target, launched, tmp_path):
    save_perturbed(demo_base_path(), tmp_path / "other", by=0.5)
    with (
        pytest.raises(ModelError, match="process 1 of the launcher: found other models under the same names"),
        launched(target, [tmp_path / "other"]) as pair,
    ):
        audit(pair, MEMBERS, NONMEMBERS, tmp_path / "out", config=CONFIG)


def test_a_launcher_that_is_not_there_is_named(target, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:4]))
    command = ("audit", str(target), "--base", str(demo_base_path()), "--members", "texts.txt")
    env = {"WORLD_SIZE": "2", "RANK": "0"}
    done = run_ltmia(*command, "--nonmembers", "texts.txt", "-o", "out", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "WORLD_SIZE=2: the processes of the launcher do not find each other" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # each process imports torch
def test_torchrun(target, tmp_path):
    """The command itself, and that all processes end when one is killed."""
    for name, rows in (("members", MEMBERS), ("nonmembers", NONMEMBERS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(text.replace("\n", " ") for text in rows))
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [str(torchrun), "--nproc-per-node", "2", "--no-python", str(torchrun.with_name("ltmia")), "audit"]
    command += [str(target), "--base", str(demo_base_path()), "--members", "members.txt"]
    command += ["--nonmembers", "nonmembers.txt", "--max-length", "32", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Records: out/records.parquet") == 1
    assert pq.read_table(tmp_path / "out/records.parquet").num_rows == 52
    code = (
        "import os, signal; from ltmia.scoring import processes; rank = os.environ['RANK']\n"
        "extract = processes.extract_batches\n"
        "def dying(*args):\n    yield next(iter(extract(*args)))\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if rank == '1': processes.extract_batches = dying\n"
        "from ltmia.__main__ import main; main()"
    )
    (tmp_path / "dying.py").write_text(code)
    command[3:5] = [str(tmp_path / "dying.py")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [*command[:-1], "killed", "--overwrite"], cwd=tmp_path, env=env, capture_output=True, timeout=300, check=False
    )
    assert killed.returncode != 0
    assert not (tmp_path / "killed/records.parquet").exists()
