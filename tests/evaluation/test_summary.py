"""The first screen's verdict: its word is the gate's, and it claims neither harm nor safety that was not measured."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.limits import DEFAULT_LIMITS, Limit
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.summary import summarise
from ltmia.evaluation.validity import control_check, power_check

Tree = dict[str, Any]


def measure(value: float | None, low: float | None = None, high: float | None = None) -> Tree:
    return {"value": value, "low": low, "high": high, "reason": None if value is not None else "too few"}


def audit(
    auc: tuple[float, float, float] = (0.5, 0.47, 0.53),
    *,
    tpr: tuple[float, float, float] = (0.01, 0.0, 0.02),
    n: tuple[int, int] = (1000, 2000),
    flagged: int = 0,
    fewest: int | None = 40,
    base: str = "ok",
    kind: str = "audit",
    p: float | None = 0.5,
) -> Results:
    """Return an audit by one attack."""
    checks = {
        name: {"status": "ok", "sentence": "fine"}
        for name in (
            "blind", "near_duplicates", "length_only", "out_of_distribution", "expectation", "base", "backend", "power"
        )
    }  # fmt: skip
    checks["base"] = {"status": base, "sentence": "Target and base are the same model; check --base."}
    model = {"source": "m", "sha256": "0", "architecture": "gpt2", "n_parameters": 1, "dtype": "float32"}
    attack = {"auc": measure(*auc), "tpr_at_fpr": {"0.1": measure(0.1, 0.08, 0.13), "0.01": measure(*tpr)}}
    asked = {"n_members": n[0]} if kind == "audit" else {"n_members": 0, "n_candidates": n[0]}
    return Results.model_validate({
        "run_id": "0" * 16, "ltmia_version": "0", "kind": kind, "created": "2026-01-01T00:00:00Z", "command": "",
        "settings": {}, "environment": {}, "target": model, "reference": model,
        "tokenizer": {"sha256": "0", "vocab_size": 9}, "data": {**asked, "n_nonmembers": n[1]},
        "attacks": {"difference": attack} if kind == "audit" else {},
        "decisions": {
            "attack": "difference", "fdr": 0.05, "n_flagged": flagged, "n_judged": n[0], "n_calibration": n[1] // 2,
            "smallest_p": 1 / (n[1] // 2 + 1), "fewest_flags": fewest,
        },
        "set_test": {"p_value": p, "effect": measure(*auc), "reason": None if p is not None else "too few"},
        "validity": checks, "verdict": "",
        "timing": {"seconds": 1, "texts_per_second": 1, "forward_seconds": 1, "feature_seconds": 1},
    })  # fmt: skip


LEAKING = audit((0.97, 0.96, 0.98), tpr=(0.7, 0.6, 0.8), flagged=700)
SMALL = audit((1.0, 0.8, 1.0), n=(12, 12), fewest=None, tpr=(1.0, 0.7, 1.0))
BROKEN = audit(base="failed")


def test_a_leaking_audit_names_what_is_exceeded_and_by_how_much() -> None:
    found = summarise(LEAKING)
    assert found.word == "Do not release: limit exceeded"
    assert found.points == (
        "700 of 1000 training records can be identified at a false discovery rate of 5 %.",
        "As a whole the training texts are clearly recognisable: AUC 0.970 [0.960, 0.980] (0.5 is guessing).",
        "3 of 3 limits exceeded: identifiable records 700 by difference, at most 0 is allowed; TPR at 1 % FPR 0.700 "
        "[0.600, 0.800] by difference, at most 0.05 is allowed; AUC 0.970 [0.960, 0.980] by difference, at most 0.6 is "
        "allowed.",
    )
    assert "no policy was given" in found.limits
    assert found.observer == "Judged by difference, as an attacker who sees log-probabilities only."


def test_a_failed_audit_also_says_which_limits_it_could_not_judge() -> None:
    found = summarise(audit((0.97, 0.96, 0.98), flagged=700), [Limit.parse("auc:0.6"), Limit.parse("epsilon:8")])
    assert found.points[2].startswith("1 of 2 limits exceeded: AUC 0.970")
    assert found.points[2].endswith(f" Cannot tell: {Limit.parse('epsilon:8').title}.")


def test_a_small_audit_cannot_tell_and_says_what_it_can() -> None:
    found = summarise(SMALL)
    assert found.word == "Cannot tell"
    assert found.points[0] == "12 records and 12 non-members are too few; at least 20 of each are needed."
    assert found.points[1].startswith("No statement on single training records")
    assert "clearly recognisable: AUC 1.000" in found.points[2]


def test_flags_hold_with_few_members_so_a_small_audit_that_flags_fails() -> None:
    assert summarise(audit((1.0, 0.9, 1.0), n=(12, 2000), flagged=12, fewest=3)).word.startswith("Do not release")


def test_finding_nothing_with_a_broken_set_up_is_no_result() -> None:
    found = summarise(BROKEN)
    assert found.word == "Cannot tell"
    assert found.points[0] == "Target and base are the same model; check --base."
    assert "0 of 1000" not in " ".join(found.points)
    assert "says nothing about the model" in found.points[1]


def test_a_safe_audit_is_within_the_limits_and_within_other_ones_it_is_not() -> None:
    assert summarise(audit()).word == "Within the limits"
    strict = summarise(audit(), [Limit.parse("auc:0.49")])
    assert strict.word == "Do not release: limit exceeded"
    assert strict.limits == "Limits of the policy: AUC 0.49."
    assert summarise(audit(), [Limit.parse("auc:0.7")]).limits == "Limits of the policy: AUC 0.7 (default: 0.6)."
    assert summarise(audit()).points[0].endswith("rate of 5 %; this audit is too small to flag fewer than 40.")
    assert summarise(audit(fewest=1)).points[0].endswith("rate of 5 %.")
    assert summarise(audit(), [Limit.parse("auc:0.51")]).word == "Cannot tell"


def test_the_observer_is_the_one_whose_attack_decides() -> None:
    tree = LEAKING.model_dump(mode="json")
    seen = {"attack": "difference", "decisions": tree["decisions"]}
    both = tree | {"observers": {"weights": seen, "logprobs": seen | {"attack": "loss"}}}
    assert "holds the weights" in summarise(Results.model_validate(both)).observer
    other = tree | {"observers": {"weights": {"reason": "not read"}, "logprobs": seen}}
    assert "log-probabilities only" in summarise(Results.model_validate(other)).observer


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"p": 0.001}, "Signs of use"),
        ({"p": 0.4}, "No sign of use"),
        ({"p": 0.4, "flagged": 50}, "Signs of use"),
        ({"p": None}, "Cannot tell"),
        ({"p": 0.4, "base": "failed"}, "Cannot tell"),
        ({"p": 0.001, "n": (5, 5)}, "Cannot tell"),
    ],
)
def test_candidates_are_not_called_members_nor_released(changes: Tree, word: str) -> None:
    found = summarise(audit(kind="score", **changes))
    assert found.word == word
    said = " ".join((*found.points, found.limits))
    assert "release" not in said
    assert "training" not in said


ends = st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.7, 1.0]), min_size=3, max_size=3).map(sorted)


@given(ends, ends, st.integers(0, 60), st.integers(0, 1500), st.sampled_from(["ok", "warning", "failed"]), st.data())
def test_the_word_is_the_gates(auc: list, tpr: list, members: int, others: int, base: str, data: st.DataObject) -> None:
    results = audit(
        (auc[1], auc[0], auc[2]), tpr=(tpr[1], tpr[0], tpr[2]), n=(members, others), base=base,
        flagged=data.draw(st.sampled_from([0, members])), fewest=data.draw(st.none() | st.integers(1, 60)),
    )  # fmt: skip
    word = summarise(copy.deepcopy(results)).word
    code = hold_against(results, DEFAULT_LIMITS).exit_code
    assert word == {0: "Within the limits", 1: "Do not release: limit exceeded", 3: "Cannot tell"}[code]


def test_checks_of_candidates_speak_of_candidates() -> None:
    control, measure_ = ControlScores(scores=np.zeros(2)), Measure(value=0.6, low=0.55, high=0.65)
    assert control_check(control, measure_, "words", "candidates").sentence.startswith("Candidates and non-members")
    decided = audit(kind="score").decisions
    assert "1000 candidates to show" in power_check(1000, 2000, decided, "candidates").sentence
    assert "1000 members" not in power_check(1000, 2000, decided, "candidates").sentence
