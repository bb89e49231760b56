"""Processes share no threads with what started them; one that hangs is ended and says where it stood."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import clean_process
import pytest
import torture
from comparisons import compare_files
from struck_commands import Kind, Strike

import child_work
from child_work import answer_once, leave, sleep_and_ignore

WITH_LAYER_NORM = """
import sys, torch, multiprocessing, clean_process
from pathlib import Path
from child_work import compute

def main():
    torch.set_num_threads(2)
    compute()  # the parent's threads are there now
    clean_process.CONTEXT = multiprocessing.get_context(sys.argv[1])
    child = clean_process.start(compute, (), Path(sys.argv[2]))
    code = child.ended(float(sys.argv[3]))
    print("ended with", code)
    if code is None:
        print(child.where_it_hangs())

if __name__ == "__main__":
    main()
"""


def started_by(method: str, folder: Path, seconds: float) -> str:
    """Use threads, start a process by one method, and tell what came of it; in a process of its own."""
    (folder / "main.py").write_text(WITH_LAYER_NORM)
    known = [str(Path(module.__file__).parent) for module in (clean_process, child_work)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*known, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(folder / "main.py"), method, str(folder / "log"), str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_computes_though_its_parent_used_threads(tmp_path: Path) -> None:
    assert clean_process.CONTEXT.get_start_method() == "forkserver"
    assert "ended with 0" in started_by("forkserver", tmp_path, 120)


def test_a_forked_process_would_hang_and_says_where(tmp_path: Path) -> None:
    said = started_by("fork", tmp_path, 5)
    assert "ended with None" in said
    assert "Aborted" in said
    assert "in compute" in said


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server: these processes load nothing."""
    monkeypatch.setattr(clean_process, "CONTEXT", multiprocessing.get_context("spawn"))


@pytest.mark.usefixtures("spawned")
def test_a_hang_counts_and_names_command_strike_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torture, "run_quickly", sleep_and_ignore)
    slow = Kind(share=1, arguments=lambda *_: [signal.SIGTERM], compare=lambda *_: None, strikes=[
        Strike(signal.SIGTERM)
    ])  # fmt: skip
    monkeypatch.setattr(torture, "KINDS", {"audit": slow})
    run = torture.Torture(tmp_path, seed=0, limit=2)
    monkeypatch.setattr(run, "undisturbed", lambda name: run.seconds.update({name: 3.0}))
    run.strike("audit", 1, time.monotonic() + 60)
    hang = run.tally.misbehaved[0]
    assert "audit after SIGTERM: no end within 2 s" in hang or "audit before any strike" in hang
    assert "in sleep_and_ignore" in hang
    assert (tmp_path / "audit-1").is_dir(), "what misbehaved is kept"


@pytest.mark.usefixtures("spawned")
def test_a_command_that_hangs_in_peace_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torture, "run_quickly", sleep_and_ignore)
    kind = Kind(share=1, arguments=lambda *_: [signal.SIGTERM], compare=lambda *_: None)
    monkeypatch.setattr(torture, "KINDS", {"audit": kind})
    with pytest.raises(SystemExit, match=r"(?s)audit in peace: no end.*in sleep_and_ignore"):
        torture.Torture(tmp_path, seed=0, limit=1).undisturbed("audit")


class Late(random.Random):
    """Strikes when all is over."""

    def uniform(self, _low: float, _high: float) -> float:
        return 60.0


@pytest.mark.usefixtures("spawned")
@pytest.mark.parametrize("is_changed", [True, False])
def test_an_answer_to_inputs_of_before_is_seen(
    is_changed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inputs, fresh = tmp_path / "audit-1-inputs", tmp_path / "audit-1-fresh"

    def change(_out: Path, _chance: random.Random) -> str:
        inputs.write_text("changed" if is_changed else "first")
        return "all"

    def lay_out_anew(_out: Path) -> Path:
        fresh.mkdir()
        return fresh

    kind = Kind(
        share=1, arguments=lambda _, out: [out], compare=compare_files, change=change, lay_out_anew=lay_out_anew
    )
    monkeypatch.setattr(torture, "run_quickly", answer_once)
    monkeypatch.setattr(torture, "KINDS", {"audit": kind})
    run = torture.Torture(tmp_path, seed=0, limit=60)
    run.seconds["audit"] = 1.0
    (tmp_path / "audit-1").mkdir()
    inputs.write_text("first")
    run._disturb("audit", tmp_path / "audit-1", 1, Late())
    run._judge("audit", tmp_path / "audit-1")
    assert not run.tally.misbehaved
    assert bool(run.tally.differences) is is_changed


@pytest.mark.usefixtures("spawned")
@pytest.mark.parametrize(
    ("code", "expected", "said"), [(3, 3, "said"), ("why", 1, "why"), (ValueError("odd"), clean_process.FAILED, "odd")]
)
def test_exit_codes_and_output_are_those_of_the_work(tmp_path: Path, code: object, expected: int, said: str) -> None:
    child = clean_process.start(leave, (code,), tmp_path / "log")
    assert child.ended(60) == expected
    assert said in (tmp_path / "log").read_text("utf-8")
