"""A minute of scripts/torture.py and scripts/soak.py, as a user starts them: `make torture` runs them whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own, with two threads, and return what it prints."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_interruptions_lose_nothing(tmp_path: Path) -> None:
    printed = run("torture.py", str(tmp_path / "out"), "--kills", "4")
    struck = dict(re.findall(r"^(\w+): (\d+) strikes", printed, re.M))
    assert set(struck) == {"audit", "score", "lab", "train", "report"}
    assert all(int(number) for number in struck.values())
    assert "rows lost: 0, rows doubled: 0\nresults differing: 0\nmisbehaved: 0" in printed


def test_texts_take_no_more_memory_late_than_early(tmp_path: Path) -> None:
    assert "faults: 0" in run("soak.py", str(tmp_path / "out"), "--texts", "1000")
