"""`ltmia attacks`, `--version` and `-h`: what a newcomer types first."""

import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import ltmia
from commands import run_ltmia
from ltmia.attacks.table import ATTACKS
from ltmia.cli.app import app

runner = CliRunner()


def test_the_list_has_one_line_an_attack_with_its_whole_name_within_80_columns() -> None:
    lines = runner.invoke(app, ["attacks"], env={"COLUMNS": "40"}).stdout.splitlines()
    rows = lines[1 : 1 + len(ATTACKS)]
    assert [row.split()[0] for row in rows] == list(ATTACKS)
    assert all(ATTACKS[row.split()[0]].title in row for row in rows)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ATTACKS)
def test_one_attack_is_shown_with_source_and_without_the_arguments_of_its_function(name: str) -> None:
    shown = runner.invoke(app, ["attacks", name]).stdout
    assert ATTACKS[name].source in shown
    assert ATTACKS[name].summary in " ".join(shown.split())
    assert "Args:" not in shown


def test_json_is_the_table() -> None:
    rows = json.loads(runner.invoke(app, ["attacks", "--json"]).stdout)
    assert {row["name"]: row["source"] for row in rows} == {a.name: a.source for a in ATTACKS.values()}
    assert [row["name"] for row in json.loads(runner.invoke(app, ["attacks", "wbc", "--json"]).stdout)] == ["wbc"]


def test_an_unknown_attack_is_refused_with_those_there_are() -> None:
    refused = run_ltmia("attacks", "ez_mai")
    assert refused.returncode == 2
    assert "ez_mia" in refused.stderr
    assert not refused.stdout


def test_version_is_that_of_the_package() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == version("ltmia") == ltmia.__version__


def test_h_is_help_everywhere_and_square_brackets_are_shown() -> None:
    assert runner.invoke(app, ["-h"]).stdout == runner.invoke(app, ["--help"]).stdout
    for command in (["gate"], ["lab"], ["lab", "run"], ["audit"]):
        found = runner.invoke(app, [*command, "-h"])
        assert found.exit_code == 0
        assert "Usage" in found.stdout
