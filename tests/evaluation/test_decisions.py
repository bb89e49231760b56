"""Decisions: groups, candidates, the bound on epsilon, comparison and gate, on scores of known law."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import beta

from commands import run_ltmia
from ltmia.errors import ConfigError
from ltmia.evaluation.calibration import judge_candidates
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.results import Check, Results

ROOT = Path(__file__).parents[2]


def test_candidates_are_judged_against_all_nonmembers() -> None:
    scores = np.array([5.0, 0.0, np.nan])
    found = judge_candidates(scores, np.arange(99) / 99, attack="loss", fdr=0.05)
    assert found.summary.n_calibration == 99
    assert found.summary.n_judged == 2
    assert found.members.flagged.tolist() == [True, False, False]
    assert found.members.p_values[0] == pytest.approx(1 / 100)


def test_the_bound_on_perfect_scores_is_the_closed_form() -> None:
    found = epsilon_lower_bound(np.ones(512) + np.arange(512), -np.arange(512.0))
    share = beta.ppf(0.05 / 12, 1024, 1)
    assert found.value == pytest.approx(math.log(share / (1 - share)))
    assert found.high is None
    assert epsilon_lower_bound(np.ones(3), np.zeros(3)).value is None


def records(members: np.ndarray, nonmembers: np.ndarray, groups: list[str] | None = None) -> pa.Table:
    n, m = len(members), len(nonmembers)
    return pa.table(
        {
            "id": [str(i) for i in range(n + m)],
            "label": [1] * n + [0] * m,
            "group": pa.array(groups or [None] * (n + m), pa.string()),
            "score_loss": np.concatenate([members, nonmembers]),
        }
    )


def results(members: np.ndarray, nonmembers: np.ndarray, n_flagged: int = 3, fewest_flags: int | None = 20) -> Results:
    check = {"status": "ok", "sentence": "fine"}
    model = {"source": "m", "sha256": "0", "architecture": "gpt2", "n_parameters": 1, "dtype": "float32"}
    measured = measure_attack(members, nonmembers, n_resamples=200)
    return Results.model_validate(
        {
            "run_id": "0" * 16,
            "ltmia_version": "0", "kind": "audit", "created": "2026-01-01T00:00:00Z", "command": "", "settings": {},
            "environment": {}, "target": model, "reference": model, "tokenizer": {"sha256": "0", "vocab_size": 9},
            "data": {"n_members": len(members), "n_nonmembers": len(nonmembers)},
            "attacks": {"loss": measured.model_dump(), "bag_of_words": measured.model_dump()},
            "decisions": {
                "attack": "loss", "fdr": 0.05, "n_flagged": n_flagged, "n_judged": len(members),
                "n_calibration": 999, "smallest_p": 0.001, "fewest_flags": fewest_flags,
            },
            "set_test": {"p_value": 0.5, "effect": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "epsilon": {"value": 1.5, "low": 1.5},
            "validity": dict.fromkeys(
                ("blind", "near_duplicates", "length_only", "out_of_distribution", "base", "backend", "power"), check
            ),
            "verdict": "", "timing": {"seconds": 1, "texts_per_second": 1, "forward_seconds": 1, "feature_seconds": 1},
        }
    )  # fmt: skip


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    found = results(rng.normal(size=1000) + 1, rng.normal(size=1000))
    (tmp_path / "results.json").write_text(found.model_dump_json(), "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--max", "auc:0.9"], 0),
        (["--max", "auc:0.6"], 1),
        (["--max", "auc:0.78"], 3),
        (["--max", "auc:0.78", "--inconclusive", "fail"], 1),
        (["--max", "auc:0.78", "--inconclusive", "pass"], 0),
        (["--max", "tpr@fpr=0.001:0.9"], 3),
        (["--max", "tpr@fpr=0.01:0.01", "--max", "auc:0.9"], 1),
        (["--max", "identifiable:0"], 1),
        (["--max", "identifiable:3", "--max", "epsilon:5"], 0),
        (["--max", "epsilon:1"], 1),
        (["--max", "loss.auc:0.9"], 0),
        (["--max", "nothing:1"], 2),
        (["--max", "auc:x"], 2),
        (["--max", "ghost.auc:1"], 2),
        ([], 1),
    ],
)
def test_gate_says_the_same_in_exit_code_output_and_files(audited: Path, arguments: list[str], code: int) -> None:
    files = ["--junit", str(audited / "junit.xml"), "--summary", str(audited / "summary.md")]
    done = run_ltmia("gate", str(audited), *arguments, *files)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 2:
        assert not (audited / "junit.xml").exists()
        return
    headline = {0: "gate passed", 1: "gate failed", 3: "inconclusive"}[code]
    assert done.stdout.strip().splitlines()[-1] == headline
    assert headline in (audited / "summary.md").read_text("utf-8")
    suite = ElementTree.fromstring((audited / "junit.xml").read_text("utf-8"))
    assert (int(suite.attrib["failures"]) > 0) == (code != 0)


def test_a_policy_file_is_read_and_a_wrong_one_named(audited: Path) -> None:
    policy = audited / "privacy.toml"
    for text, code in (
        ('inconclusive = "pass"\n[max]\nauc = 0.9\n"tpr@fpr=0.001" = 0.5\n', 0),
        ("[max]\nauc = 0.1\n", 1),
        ("[max]\nacu = 0.1\n", 2),
        ("[max\n", 2),
        ("limit = 3\n[max]\n", 2),
    ):
        policy.write_text(text, "utf-8")
        done = run_ltmia("gate", str(audited), "--policy", str(policy))
        assert done.returncode == code, (text, done.stdout, done.stderr)
        assert code != 2 or "privacy.toml" in done.stderr


def test_what_cannot_be_flagged_is_inconclusive() -> None:
    few = results(np.arange(20.0), np.arange(20.0), n_flagged=0, fewest_flags=None)
    assert hold_against(few, [Limit.parse("identifiable:0")]).exit_code == 3
    nothing = hold_against(few, [Limit.parse("tpr@fpr=0.01:0.5")])
    assert nothing.exit_code == 3
    assert "non-members" in nothing.lines()[0]


def test_comparison_tells_less_from_more_and_admits_not_knowing() -> None:
    rng = np.random.default_rng(3)
    noise, shift = rng.normal(size=600), np.repeat([1.0, 0.0], 300)
    strong, weak = noise + shift, noise + 0.5 * shift

    def audit_of(scores: np.ndarray) -> tuple[Results, pa.Table]:
        return results(scores[:300], scores[300:]), records(scores[:300], scores[300:])

    better = compare_audits(audit_of(strong), audit_of(weak))
    assert better.lower_leakage == "yes"
    expected = (
        measure_attack(weak[:300], weak[300:], n_resamples=10).auc.value
        - measure_attack(strong[:300], strong[300:], n_resamples=10).auc.value
    )
    assert better.auc.value == pytest.approx(expected)
    assert compare_audits(audit_of(weak), audit_of(strong)).lower_leakage == "no"
    same = compare_audits(audit_of(weak), audit_of(weak + 1e-9 * rng.normal(size=600)))
    assert same.lower_leakage == "cannot tell"
    assert better.tpr_at_fpr["0.001"].value is None


def test_an_audit_that_saw_nothing_is_no_sign_of_less_leakage() -> None:
    rng = np.random.default_rng(3)
    noise, shift = rng.normal(size=600), np.repeat([1.0, 0.0], 300)
    strong, nothing = noise + shift, noise
    leaky = results(strong[:300], strong[300:]), records(strong[:300], strong[300:])
    quiet = results(nothing[:300], nothing[300:]), records(nothing[:300], nothing[300:])
    assert compare_audits(leaky, quiet).lower_leakage == "yes"
    same = Check(status="failed", sentence="Target and base are the same.")
    blind = quiet[0].model_copy(update={"validity": quiet[0].validity.model_copy(update={"base": same})})
    for first, second in ((leaky, (blind, quiet[1])), ((blind, quiet[1]), leaky)):
        found = compare_audits(first, second)
        assert found.lower_leakage == "cannot tell"
        assert "found less may see too little: Target and base are the same." in found.sentence


def test_comparison_refuses_other_texts() -> None:
    a = np.arange(30.0)
    first = (results(a, a), records(a, a))
    other = (results(a, a), records(a, a[:-1]))
    with pytest.raises(ConfigError, match="same members"):
        compare_audits(first, other)
    with pytest.raises(ConfigError, match="no scores of wbc"):
        compare_audits(first, first, attack="wbc")


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [("max_length", 512, True), ("seed", 1, True), ("attacks", "loss", True), ("classifier", "lite", True),
     ("deduplicate", True, True), ("fdr", 0.1, True), ("batch_size", 4, False), ("reveal", True, False),
     ("spans", "rules.txt", False), ("most_values", 100, False)],
)  # fmt: skip
def test_comparison_refuses_other_settings_by_name(name: str, value: object, *, refused: bool) -> None:
    a = np.arange(30.0)
    settings = {"max_length": 128, "seed": 0, "attacks": "fast", "classifier": None, "deduplicate": False, "fdr": 0.05}
    first = results(a, a).model_copy(update={"settings": settings})
    second = first.model_copy(update={"settings": {**settings, name: value}})
    assert compare_audits((first, records(a, a)), (first, records(a, a))).lower_leakage == "cannot tell"
    if not refused:
        compare_audits((first, records(a, a)), (second, records(a, a)))
        return
    with pytest.raises(ConfigError, match=f"differ in {name}: .*{value}"):
        compare_audits((first, records(a, a)), (second, records(a, a)))


def test_comparison_refuses_what_is_no_audit() -> None:
    a = np.arange(30.0)
    claim = results(a, a).model_copy(update={"kind": "score"})
    with pytest.raises(ConfigError, match="only audits"):
        compare_audits((claim, records(a, a)), (claim, records(a, a)))


def test_json_of_a_bound_is_readable() -> None:
    bound = epsilon_lower_bound(np.arange(50.0) + 60, np.arange(50.0))
    assert json.loads(bound.model_dump_json())["high"] is None
