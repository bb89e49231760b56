"""A minute of scripts/torture.py and scripts/soak.py; `make torture` runs them whole."""

import re
from pathlib import Path

from commands import run_script

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_interruptions_lose_nothing(tmp_path: Path) -> None:
    done = run_script(
        SCRIPTS / "torture.py", str(tmp_path / "out"), "--kinds", "audit,score", "--kills", "5", "--seconds", "240"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = int(re.search(r"kills: (\d+)", done.stdout)[1])
    assert kills >= 4
    assert "rows lost: 0, rows doubled: 0" in done.stdout
    assert "results differing: 0, misbehaved: 0" in done.stdout
    assert {"SIGINT", "SIGKILL"} <= set(re.findall(r"'(SIG\w+)'", done.stdout))


def test_texts_take_no_more_memory_late_than_early(tmp_path: Path) -> None:
    done = run_script(SCRIPTS / "soak.py", str(tmp_path / "out"), "--texts", "4000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0" in done.stdout
