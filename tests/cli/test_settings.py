"""Options from the environment and from a file: read, outranked, and refused where no command reads them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ltmia.cli.app import app
from ltmia.errors import ConfigError
from report_samples import made_up_audit

runner = CliRunner()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_audit(tmp_path_factory.mktemp("audit"), 200, reveal=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(audited: Path, *arguments: str, **environment: str) -> list[str]:
    done = runner.invoke(app, ["gate", str(audited), "--json", *arguments], env=environment)
    return [limit["figure"] for limit in json.loads(done.stdout)["limits"]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ltmia.toml", 'max = ["auc:1"]\n'),
        ("ltmia.toml", 'max = ["identifiable:0"]\n[gate]\nmax = ["auc:1"]\n'),
        ("pyproject.toml", '[tool.ltmia]\nmax = ["auc:1"]\n'),
        ("pyproject.toml", '[tool.ltmia.gate]\nmax = ["auc:1"]\n'),
    ],
)
def test_a_file_sets_an_option_which_the_environment_and_the_command_line_outrank(
    audited: Path, here: Path, name: str, said: str
) -> None:
    assert figures(audited) == ["identifiable", "tpr@fpr=0.01", "auc"]
    (here / name).write_text(said)
    assert figures(audited) == ["auc"]
    assert figures(audited, LTMIA_MAX="epsilon:8") == ["epsilon"]
    assert figures(audited, "--max", "identifiable:0", LTMIA_MAX="epsilon:8") == ["identifiable"]


def test_options_that_need_another_are_refused_on_the_command_line_alone(here: Path) -> None:
    """`doctor` has --max-length for plans; a file sets it for audits."""
    (here / "ltmia.toml").write_text("max_length = 64\n")
    done = runner.invoke(app, ["doctor", str(here / "none"), "--base", str(here / "none")])
    assert "plan" not in str(done.exception)
    done = runner.invoke(app, ["doctor", str(here / "none"), "--max-length", "64"])
    assert isinstance(done.exception, ConfigError)
    assert "`max_length` needs `plan=True`" in str(done.exception)


def test_an_option_of_other_commands_is_passed_over(audited: Path, here: Path) -> None:
    (here / "ltmia.toml").write_text("fdr = 0.01\nmax_length = 64\n[audit]\ndeduplicate = true\n")
    assert figures(audited) == ["identifiable", "tpr@fpr=0.01", "auc"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("max-lenght = 64\n", r"ltmia\.toml: max-lenght: no such option; the nearest is max-length"),
        ("[adit]\nfdr = 0.1\n", r"adit: no such option; the nearest is audit"),
        ("[gate]\nfdr = 0.1\n", r"gate: fdr: no such option"),
        ("trust_remote_code = true\n", "give --trust-remote-code on the command line"),
        ("[audit]\nreveal = true\n", "give --reveal on the command line"),
        ('endpoint = "http://elsewhere/v1"\n', "give --endpoint on the command line"),
        ('[gate]\nsummary = "notes.md"\n', "give --summary on the command line"),
        ("fdr = \n", "not readable as TOML"),
    ],
)
def test_what_no_command_reads_is_refused_by_name(audited: Path, here: Path, said: str, message: str) -> None:
    (here / "ltmia.toml").write_text(said)
    with pytest.raises(ConfigError, match=message):
        runner.invoke(app, ["gate", str(audited)], catch_exceptions=False)
