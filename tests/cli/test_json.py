"""`--json`: stdout is one JSON document with the figures of the files; the default limits are those of the page."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ltmia.cli.app import app
from ltmia.errors import ConfigError
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_audit, read_results
from report_samples import made_up_audit

runner = CliRunner()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_audit(tmp_path_factory.mktemp("audit"), 200, reveal=False)


def test_the_gate_without_limits_uses_the_default_ones_and_says_so_in_json(audited: Path) -> None:
    done = runner.invoke(app, ["gate", str(audited), "--json"])
    found = json.loads(done.stdout)
    assert [limit["figure"] for limit in found["limits"]] == ["identifiable", "tpr@fpr=0.01", "auc"]
    assert found["outcome"] == "failed"
    assert found["exit_code"] == done.exit_code == 1
    assert runner.invoke(app, ["gate", str(audited), "--max", "auc:1", "--json"]).exit_code == 3  # no base check


def test_a_comparison_in_json_is_that_of_the_function(audited: Path) -> None:
    done = runner.invoke(app, ["compare", str(audited), str(audited), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = compare_audits(read_audit(audited), read_audit(audited))
    assert found["auc"]["value"] == expected.auc.value == 0
    n = read_results(audited).decisions.n_flagged
    assert found["identifiable"] == [n, n]


def test_a_report_held_against_a_policy_names_its_limits(audited: Path, tmp_path: Path) -> None:
    policy = tmp_path / "privacy.toml"
    policy.write_text("[max]\nauc = 1\n")
    assert runner.invoke(app, ["report", str(audited), "--policy", str(policy)]).exit_code == 0
    assert "Limits of the policy: AUC 1 (default: 0.6)." in (audited / "report.html").read_text("utf-8")
    assert runner.invoke(app, ["report", str(audited)]).exit_code == 0
    assert "Default limits, since no policy was given" in (audited / "report.html").read_text("utf-8")


@pytest.mark.parametrize("option", ["--summary", "--junit"])
@pytest.mark.parametrize("name", ["results.json", "records.parquet", "report.html", "privacy.toml"])
def test_what_the_gate_reads_is_not_written_to(audited: Path, option: str, name: str) -> None:
    (audited / "report.html").touch()
    (audited / "privacy.toml").write_text("[max]\nauc = 0.6\n", "utf-8")
    before = (audited / name).read_bytes()
    done = runner.invoke(
        app, ["gate", str(audited), "--policy", str(audited / "privacy.toml"), option, str(audited / name)]
    )
    assert isinstance(done.exception, ConfigError)
    assert (audited / name).read_bytes() == before
    (audited / "report.html").unlink()
