"""A minute of scripts/torture.py: commands struck by signals at random come to what they come to in peace."""

import re
from pathlib import Path

from commands import run_script

SCRIPT = Path(__file__).parent.parent / "scripts" / "torture.py"


def test_interruptions_lose_nothing(tmp_path: Path) -> None:
    done = run_script(SCRIPT, str(tmp_path / "out"), "--kinds", "audit,score", "--kills", "12", "--seconds", "240")
    assert done.returncode == 0, done.stdout + done.stderr
    kills = int(re.search(r"kills: (\d+)", done.stdout)[1])
    assert kills >= 8
    assert "rows lost: 0, rows doubled: 0" in done.stdout
    assert "results differing: 0, misbehaved: 0" in done.stdout
    assert {"SIGINT", "SIGKILL"} <= set(re.findall(r"'(SIG\w+)'", done.stdout))
