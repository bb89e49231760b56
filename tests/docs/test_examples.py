"""The script for each kind of user runs on what comes along, and finds what is there."""

import re
from pathlib import Path

import pytest

from commands import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
FOUND = {
    "auditor": r"Lower leakage: yes\.(?s:.*)gate (passed|failed)|inconclusive",
    "claimant": r"All candidates together: p = 0\.0(?s:.*)of which ([3-9]\d) were",
    "trainer": r"failed: AUC of \w+ is (1|0\.[6-9])(?s:.*)train_runtime",
    "sft_trainer": r"failed: AUC of \w+ is (1|0\.[6-9])(?s:.*)train_runtime",
    "researcher": r"share_gained: AUC 0\.[6-9](?s:.*)difference: AUC 0\.[6-9]",
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*FOUND, "materials"}


@pytest.mark.parametrize("name", FOUND)
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name == "sft_trainer":
        pytest.importorskip("trl", reason="the extra trl is not installed")
    script = EXAMPLES / f"{name}.py"
    done = run_script(script, "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(FOUND[name], done.stderr + done.stdout), done.stdout
