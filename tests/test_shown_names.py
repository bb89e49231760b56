"""What is shown of paths and commands names no folder of the machine."""

from pathlib import Path

import pytest

from ltmia.shown_names import shown_command, shown_path


def test_a_command_is_shown_without_the_machines_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = [
        "/usr/bin/ltmia", "audit", "org/model", f"--base={tmp_path}/here/base", f"--members={tmp_path}/a b/x=y.jsonl",
        "--nonmembers", f"{tmp_path}/b.jsonl", f"-o{tmp_path}/out", "--max=auc:0.6", "-", "--quiet",
    ]  # fmt: skip
    shown = "ltmia audit org/model --base=base --members=x=y.jsonl --nonmembers b.jsonl -oout --max=auc:0.6 - --quiet"
    assert shown_command(given) == shown


def test_a_path_outside_the_current_folder_is_shown_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert shown_path("../patients of Dr Doe/model") == "model"
    assert shown_path("sub/../model") == "model"
    assert shown_path("org/model@main") == "org/model@main"
    given = ["ltmia", "audit", "../Doe/model", "--base=../../Doe/base", "-o../Doe/out", "-o./out", "org/a..b"]
    assert shown_command(given) == "ltmia audit model --base=base -oout -o./out org/a..b"


@pytest.mark.parametrize("program", ["ltmia", ".venv/bin/ltmia", "/opt/x/bin/ltmia", "/opt/x/lib/ltmia/__main__.py"])
def test_the_program_is_shown_by_its_name(program: str) -> None:
    assert shown_command([program, "audit", "./model"]) == "ltmia audit ./model"
