"""Below the command line, messages name options as Python does; the command line shows its own flags."""

import ast
import re
import sys
import warnings
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ltmia.__main__ import main
from ltmia.auditing.audit import AuditConfig
from ltmia.auditing.score import ScoreConfig
from ltmia.cli.app import app
from ltmia.cli.flags import flags, in_flags
from ltmia.shown_names import flag_of

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
SOURCE = Path(str(files("ltmia")))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("name it with `base`", "name it with --base"),
        ("`day` and `sequential=True`", "--date and --sequential-models"),
        ('say `dtype="float32"`, or `base=org/model@1`', "say --dtype float32, or --base org/model@1"),
        ("`ltmia attacks`, `ray start --address`, `basement`, `x=1`", None),
        ("base, day=True and dtype", None),
    ],
)
def test_options_in_backquotes_become_flags(message: str, shown: str | None) -> None:
    assert in_flags(message, get_command(app)) == (shown or message)


@pytest.mark.parametrize("config", [AuditConfig, ScoreConfig])
def test_a_report_names_the_flags_that_the_command_has(config: type) -> None:
    known = flags(get_command(app))
    options = [field.name for field in fields(config) if field.name != "chat_day"]
    assert {name: flag_of(name) for name in options} == {name: known[name] for name in options}


def test_no_flag_is_named_below_the_command_line() -> None:
    known = re.compile(rf"(?<![\w-])(?:{'|'.join(flags(get_command(app)).values())})(?![\w-])")
    named = [
        f"{file.relative_to(SOURCE)}:{node.lineno}: {node.value[:80]}"
        for file in SOURCE.rglob("*.py")
        if "cli" not in file.parts
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and known.search(node.value)
    ]
    assert named == []


def test_doctor_names_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets another
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    done = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert done.exit_code == 2
    assert "name that one with --base" in done.output


def test_an_error_that_ends_a_command_names_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["ltmia", "lab", "run", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "lab")]
    )
    (tmp_path / "recipe.toml").write_text(RECIPE.read_text("utf-8").replace("embedded", "nowhere"))
    with pytest.raises(SystemExit):
        main()
    assert "as --corpora" in capsys.readouterr().err
