"""Examining a classifier: averages against the definition, and train / evaluate on stores of the smoke lab."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import run_ltmia
from ltmia.classifier.membership import MembershipClassifier
from ltmia.errors import StoreError
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.macro import error_ratio, macro_averages, mean_with_interval
from ltmia.pipelines.examine import evaluate, find_combinations, recipe_of


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
def test_a_mean_is_that_of_the_numbers_and_lies_in_its_interval(values: list[float]) -> None:
    found = mean_with_interval(values)
    numbers = [value for value in values if value == value]
    if not numbers:
        assert found.value is None
        assert found.reason
        return
    assert found.value == pytest.approx(sum(numbers) / len(numbers))
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9


def test_targets_are_averaged_and_never_pooled() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    # The same scores on another scale: pooled into one ROC they would tell nothing.
    examined = [
        {
            "ltmia": measure_attack(scale * noise[:100] + scale * 2, scale * noise[100:], n_resamples=50),
            "loss": measure_attack(scale * noise[:100] + scale, scale * noise[100:], n_resamples=50),
        }
        for scale in (1.0, 1000.0)
    ]
    best, other = macro_averages(examined)
    assert (best.attack, other.attack) == ("ltmia", "loss")
    assert best.figures["auc"].value == pytest.approx(examined[0]["ltmia"].auc.value)
    assert best.figures["0.001"].value is None
    a, b = examined[0]["ltmia"].auc.value, examined[0]["loss"].auc.value
    assert error_ratio(examined, "ltmia").value == pytest.approx((1 - a) / (1 - b))


@pytest.fixture(scope="module")
def stores(smoke_lab: Path) -> Path:
    return smoke_lab / "stores"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_ltmia(*arguments)


def test_train_and_evaluate_on_other_stores(stores: Path, tmp_path: Path) -> None:
    done = run("train", str(stores), "-o", str(tmp_path / "model"), "--hold-out", "tiny", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "trained on 2 combinations, 2 held out" in done.stdout
    held_out = [str(path) for path in sorted(stores.glob("tiny.*"))]
    done = run("evaluate", str(tmp_path / "model"), *held_out, "-o", str(tmp_path / "exam"))
    assert done.returncode == 0, done.stderr
    assert "corpus late (1)" in done.stdout
    figures = json.loads((tmp_path / "exam" / "exam.json").read_text("utf-8"))
    assert set(figures) == {"tiny.early.quick", "tiny.late.quick"}
    assert {"ltmia", "ez_mia", "wbc", "difference"} <= set(figures["tiny.late.quick"])
    refused = run("evaluate", str(tmp_path / "model"), str(stores), "-o", str(tmp_path / "exam"))
    assert refused.returncode == 2
    assert "demo.early.quick" in refused.stderr


def test_stores_are_found_at_any_depth_and_their_absence_is_named(stores: Path, tmp_path: Path) -> None:
    found = find_combinations([stores.parent])
    assert len(found) == 4
    assert {recipe_of(combination)["corpus"] for combination in found} == {"early", "late"}
    with pytest.raises(StoreError, match="no finished store"):
        find_combinations([tmp_path])


def test_what_was_trained_on_is_not_examined(stores: Path, tmp_path: Path) -> None:
    combinations = find_combinations([stores])
    classifier = MembershipClassifier()
    classifier.trained_on_ = (combinations[0].name,)
    with pytest.raises(StoreError, match="trained on these"):
        evaluate(classifier, combinations, tmp_path)
