"""The headline and the verdict: no all-clear where the audit was blind, no caution without an effect."""

from typing import Any

import numpy as np
import pytest

from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.model_checks import TESTED_TIMES, distribution_check
from ltmia.evaluation.results import AttackResult, Check, Decisions, SetTest, Validity
from ltmia.evaluation.section import Measure
from ltmia.evaluation.validity import control_check, duplicates_check, power_check
from ltmia.evaluation.verdict import headline, set_sentence, verdict

FINE = Check(status="ok", sentence="fine")
CHECKS = dict.fromkeys(("blind", "near_duplicates", "length_only", "out_of_distribution", "backend", "power"), FINE)
VALIDITY = Validity.model_validate({**CHECKS, "base": FINE})


def decisions(**changes: Any) -> Decisions:
    known = {"attack": "difference", "fdr": 0.05, "n_flagged": 0, "n_judged": 40, "n_calibration": 104}
    return Decisions.model_validate({**known, "smallest_p": 1 / 105, "fewest_flags": 46, **changes})


def attacks(value: float, low: float, high: float) -> dict[str, AttackResult]:
    return {"difference": AttackResult(auc=Measure(value=value, low=low, high=high), tpr_at_fpr={})}


def test_a_blind_audit_gives_no_all_clear() -> None:
    blind = decisions()
    line = headline(blind, "training records", [])
    assert "0 of 40" not in line
    assert line.startswith("No statement on single training records")
    said = verdict(attacks(1.0, 0.95, 1.0), blind, VALIDITY)
    assert "can be identified" not in said
    assert "at least 46 would have to score above" in said
    assert "members as a whole can be told from non-members" in said
    assert "nothing about single records" in verdict({}, decisions(fewest_flags=None), VALIDITY)


def test_an_audit_that_saw_says_what_it_found() -> None:
    seeing = decisions(fewest_flags=5)
    assert headline(seeing, "training records", []).startswith("0 of 40 training records can be identified")
    assert headline(seeing, "candidates", ["The base is wrong."]).endswith("; but this audit may see too little")
    said = verdict(attacks(0.7, 0.6, 0.8), seeing, VALIDITY)
    assert "Still, members as a whole can be told" in said
    assert "Still," not in verdict(attacks(0.52, 0.45, 0.6), seeing, VALIDITY)
    assert "Still," not in verdict(attacks(0.9, 0.8, 0.95), decisions(fewest_flags=5, n_flagged=9), VALIDITY)


def test_swapped_files_and_a_control_alone_are_said() -> None:
    assert "swapped" in verdict(attacks(0.001, 0.0, 0.002), decisions(fewest_flags=5), VALIDITY)
    assert "says nothing about the model" in verdict({}, decisions(attack="bag_of_words", fewest_flags=5), VALIDITY)
    assert headline(decisions(n_judged=0), "candidates", []) == "No statement on candidates: none could be scored"
    effect = Measure(value=0.1, low=0.05, high=0.2)
    assert "swapped" in set_sentence(SetTest(p_value=1.0, effect=effect))
    assert "swapped" not in set_sentence(SetTest(p_value=1.0, effect=Measure(value=0.4, low=0.3, high=0.5)))
    assert "No record could be scored" in verdict({}, decisions(n_judged=0, fewest_flags=None), VALIDITY)


@pytest.mark.parametrize(
    ("measure", "status"),
    [((0.507, 0.502, 0.512), "ok"), ((0.56, 0.53, 0.59), "warning"), ((0.44, 0.4, 0.48), "warning"),
     ((0.56, 0.49, 0.63), "ok")],
)  # fmt: skip
def test_a_control_is_a_caution_with_an_effect_only(measure: tuple[float, float, float], status: str) -> None:
    value, low, high = measure
    found = control_check(ControlScores(scores=np.zeros(2)), Measure(value=value, low=low, high=high), "length")
    assert found.status == status
    assert found.measure.value == value


def test_a_far_target_is_a_caution_beyond_those_tested_only() -> None:
    assert distribution_check(0.5, 0.84).status == "ok"
    within = distribution_check(3.6, 0.84)
    assert within.status == "ok"
    assert "distance 3.60" in within.sentence
    assert distribution_check(0.84 * TESTED_TIMES + 0.01, 0.84).status == "warning"


def test_groups_that_cannot_be_flagged_are_said() -> None:
    seeing = decisions(fewest_flags=5, n_calibration_groups=30, n_groups_judged=40)
    assert "too few groups of non-members" in power_check(40, 208, seeing).sentence
    assert power_check(40, 208, seeing).status == "warning"
    enough = decisions(fewest_flags=5, n_calibration_groups=30, n_groups_judged=40, fewest_group_flags=26)
    assert power_check(40, 208, enough).status == "ok"


@pytest.mark.parametrize(("n_within", "status"), [(0, "ok"), (3, "ok"), (300, "warning")])
def test_many_repeats_are_a_caution(n_within: int, status: str) -> None:
    found = duplicates_check(n_within=n_within, n_across=0, n_overlapping=0, n_left_out=None, n_texts=500)
    assert found.status == status
    assert ("count once" in found.sentence) == (n_within > 0)
