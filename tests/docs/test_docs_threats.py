"""docs/threat-model.md names tests that exist, and every promise of SECURITY.md stands in it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text("utf-8")


def test_every_test_that_the_threat_model_names_exists() -> None:
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert named <= there, named - there


def test_every_threat_has_a_test_or_an_admission() -> None:
    rows = [row.split("|")[1:-1] for row in re.findall(r"^\|.+\|$", PAGE, re.M)]
    threats = [row for row in rows if row[0].strip() not in ("attack", "fault") and set(row[0]) != {"-"}]
    assert len(threats) > 20
    for _threat, means, tests in threats:
        assert tests.strip() or means.strip().startswith("none:"), means
