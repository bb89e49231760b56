"""No text that can be scored: every row is kept with its reason, figures are null, and nothing passes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from commands import run_ltmia
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.score import ScoreConfig, score
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.files import read_results
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.model_checks import BaseComparison, base_check
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair

LIMITS = [Limit.parse(text) for text in ("identifiable:0", "auc:1", "tpr@fpr=0.1:1", "epsilon:1")]
TEXTS = demo_texts().texts


@pytest.fixture
def pair() -> Pair:
    return load_pair(demo_base_path(), demo_base_path(), dtype="float32", device="cpu")


def poison(pair: Pair) -> None:
    for parameter in pair.target.parameters():
        parameter.data.fill_(float("nan"))


@pytest.mark.parametrize("what", ["empty texts", "weights that are not numbers"])
def test_an_audit_without_a_scorable_text_is_whole_and_says_so(pair: Pair, what: str, tmp_path: Path) -> None:
    sets = ([""] * 3, ["", " "]) if what == "empty texts" else (TEXTS[:3], TEXTS[60:62])
    if what != "empty texts":
        poison(pair)
    config = AuditConfig(attacks="ltmia,difference,excess,loss", max_length=16)
    found = audit(pair, *sets, tmp_path, config=config)
    reasons = found.records["reason"].to_pylist()
    assert len(reasons) == 5
    assert all("too few to score" in reason or "the target gives NaN" in reason for reason in reasons)
    assert read_results(tmp_path).data.n_unscorable == 5
    assert all(attack.auc.value is None and attack.auc.reason for attack in found.results.attacks.values())
    assert "No record could be scored" in found.results.verdict
    assert [judged.outcome for judged in hold_against(found.results, LIMITS).judged] == ["inconclusive"] * 4
    if what != "empty texts":
        assert found.results.validity.base.status == "failed"
        assert "not all finite" in found.results.validity.base.sentence


def test_candidates_without_a_scorable_text_are_kept(pair: Pair, tmp_path: Path) -> None:
    found = score(pair, ["", ""], TEXTS[60:64], tmp_path, config=ScoreConfig(attack="difference", max_length=16))
    assert found.results.set_test.p_value is None
    assert found.results.decisions.n_judged == 0
    assert "No statement about the candidates" in found.results.verdict


def test_a_target_and_base_that_say_the_same_are_noticed_without_looking_at_weights() -> None:
    said = BaseComparison(shared=1.0, change=None, difference=1e-6, agreement=1.0, target_loss=4.0, reference_loss=4.0)
    assert base_check(said).status == "failed"
    assert "the same probability" in base_check(said).sentence
    assert base_check(replace(said, difference=math.nan)).status == "not_measured"
    assert base_check(replace(said, difference=0.1, target_loss=3.9)).status == "ok"


def test_a_base_that_shares_no_weight_is_another_kind_of_model_and_not_a_damaged_one() -> None:
    said = BaseComparison(
        shared=0.0, change=math.inf, difference=3.0, agreement=0.1, target_loss=4.0, reference_loss=9.0
    )
    assert base_check(said).status == "warning"
    assert "another kind of model" in base_check(said).sentence
    assert "not all finite" in base_check(replace(said, change=math.nan)).sentence


def test_the_command_names_the_model_and_ends_inconclusive(tmp_path: Path) -> None:
    for name in ("members", "nonmembers"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": ""}) + "\n", "utf-8")
    base = str(demo_base_path())
    texts = ("--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl", "--attacks", "loss")
    done = run_ltmia("audit", base, "--base", base, *texts, "-o", "out", "--quiet", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"{Path(base).name} and its base" in done.stderr
    assert "none of the 2 texts" in done.stderr
    assert "too few to score" in done.stderr
    assert (tmp_path / "out" / "records.parquet").exists()
    assert (tmp_path / "out" / "report.html").exists()
