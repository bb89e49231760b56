"""`ltmia attacks`, `--version` and `-h`: what a newcomer types first."""

import json
import logging
import re
import warnings
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import ltmia
from commands import run_ltmia
from ltmia.attacks.table import ATTACKS
from ltmia.cli.app import app
from ltmia.cli.progress import calm_libraries

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


def test_commands_stand_under_their_panels_in_the_order_of_work() -> None:
    shown = runner.invoke(app, ["--help"]).stdout
    places = [
        re.search(rf"^ *{name}\b", shown, re.MULTILINE).start()
        for name in ("Start here", "demo", "Audit", "audit", "Decide", "gate", "Research", "lab")
    ]
    assert places == sorted(places)
    assert "..." not in shown.split("Start here")[1], "no sentence is cut"
    assert "run" in runner.invoke(app, ["lab", "--help"]).stdout


@pytest.mark.parametrize(
    ("typed", "offered"), [("ltmia au", "audit"), ("ltmia gate --inc", "--inconclusive"), ("ltmia lab st", "status")]
)
def test_the_shell_completes_commands_and_options(typed: str, offered: str) -> None:
    words = {"_LTMIA_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert offered in runner.invoke(app, [], prog_name="ltmia", env=words).stdout.split()


def test_libraries_speak_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as libraries

    monkeypatch.setattr("ltmia.cli.progress.warn_in_flags", lambda: None)  # asks which program runs; none does here
    for verbose, level in ((True, logging.WARNING), (False, logging.ERROR)):
        libraries.set_verbosity_warning()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calm_libraries(verbose=verbose)
            warnings.warn("soon gone", FutureWarning, stacklevel=1)
        assert libraries.get_verbosity() == level
        assert len(caught) == verbose
    assert "-v" in runner.invoke(app, ["audit", "--help"]).stdout


def test_h_is_help_everywhere_and_square_brackets_are_shown() -> None:
    assert runner.invoke(app, ["-h"]).stdout == runner.invoke(app, ["--help"]).stdout
    for command in (["gate"], ["lab"], ["lab", "run"], ["audit"]):
        found = runner.invoke(app, [*command, "-h"])
        assert found.exit_code == 0
        assert "Usage" in found.stdout
