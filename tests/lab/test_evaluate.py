"""Evaluating a classifier: averages against the definition, and train / evaluate on stores of the smoke lab."""

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from commands import run_ltmia
from ltmia.classifier.domain import TrainingDomain
from ltmia.classifier.membership import MembershipClassifier
from ltmia.errors import ConfigError, StoreError
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.macro import best_rule, error_ratio, macro_averages, mean_with_interval
from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.section import Measure
from ltmia.lab.evaluate import evaluate, find_combinations, recipe_of
from ltmia.report.evaluation import draw_evaluation, evaluation_tables
from ltmia.report.figures import Contest, plot_evaluation


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
    results = [
        {
            "ltmia": measure_attack(scale * noise[:100] + scale * 2, scale * noise[100:], n_resamples=50),
            "loss": measure_attack(scale * noise[:100] + scale, scale * noise[100:], n_resamples=50),
        }
        for scale in (1.0, 1000.0)
    ]
    best, other = macro_averages(results)
    assert (best.attack, other.attack) == ("ltmia", "loss")
    assert best.figures["auc"].value == pytest.approx(results[0]["ltmia"].auc.value)
    assert best.figures["0.001"].value is None
    a, b = results[0]["ltmia"].auc.value, results[0]["loss"].auc.value
    assert error_ratio(results, "ltmia").value == pytest.approx((1 - a) / (1 - b))


def measured(**aucs: float | None) -> dict[str, AttackResult]:
    """Results that have no figure but the AUC, with intervals a hundredth wide to both sides."""
    none = Measure(reason="too few")
    rates = {"0.1": none, "0.01": none, "0.001": none}
    return {
        name: AttackResult(
            auc=none if value is None else Measure(value=value, low=value - 0.01, high=value + 0.01), tpr_at_fpr=rates
        )
        for name, value in aucs.items()
    }


RESULTS = {
    "mamba.code.a": measured(ltmia=0.9, excess=0.99, wbc=0.8, loss=0.6),
    "mamba.code.b": measured(ltmia=0.8, excess=0.70, wbc=None, loss=0.6),
    "mamba.talk.a": measured(ltmia=0.7, excess=0.70, wbc=0.4, loss=0.4),
    "rwkv.code.a": measured(ltmia=0.95, excess=0.9, wbc=0.75, loss=0.8),
}
RECIPES = {
    name: dict(zip(("architecture", "corpus", "regime"), name.split("."), strict=True)) for name in reversed(RESULTS)
}


def test_the_best_published_rule_is_neither_ours_nor_one_that_was_not_measured() -> None:
    best = {name: best_rule(one, leave_out=["ltmia", "excess"]) for name, one in RESULTS.items()}
    assert best == {"mamba.code.a": "wbc", "mamba.code.b": "loss", "mamba.talk.a": "wbc", "rwkv.code.a": "loss"}


def table_below(text: str, head: str) -> dict[str, list[str]]:
    """Cells of the Markdown table whose first column has this title, by row."""
    lines = text[text.index(f"| {head} |") :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]}


def test_the_transfer_matrix_averages_what_an_architecture_and_a_corpus_share() -> None:
    text = evaluation_tables(RESULTS, RECIPES)
    auc = table_below(text, "AUC of ltmia")
    assert list(auc) == ["mamba", "rwkv", "all"]
    assert list(auc["mamba"]) == ["code", "talk", "all"]
    assert auc["mamba"]["code"].startswith("0.850 [0.800, 0.900]")  # of .9 and .8
    assert auc["mamba"]["code"].endswith("(2)")
    assert auc["mamba"]["talk"] == "0.700 [0.690, 0.710] (1)"  # its own interval
    assert auc["rwkv"]["talk"] == "–"
    assert auc["all"]["all"].startswith("0.838")  # of .9, .8, .7, .95
    ratio = table_below(text, "(1 - AUC) over the best published attack's")
    assert ratio["mamba"]["code"].startswith("0.500 ")  # .1 / .2 and .2 / .4
    assert ratio["rwkv"]["code"] == "0.250 (1)"  # .05 / .2
    assert ratio["mamba"]["talk"] == "0.500 (1)"  # .3 / .6
    each = table_below(text, "combination")
    assert each["mamba.code.b"]["best published attack"] == "loss 0.600 [0.590, 0.610]"
    assert each["rwkv.code.a"]["(1 - AUC) over its"] == "0.250"


def test_the_figure_shows_every_combination_under_its_architecture() -> None:
    drawing = draw_evaluation(RESULTS | {"odd.<&$.a": measured(ltmia=0.6, wbc=None)}, RECIPES | {"odd.<&$.a": {}})
    root = ElementTree.fromstring(drawing)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    labels = [text for text in texts if text.partition(".")[0] in ("mamba", "rwkv", "odd", "unknown")]
    assert labels == [
        "mamba", "mamba.code.a", "mamba.code.b", "mamba.talk.a", "rwkv", "rwkv.code.a", "unknown", "odd.<&$.a",
    ]  # fmt: skip
    assert {"AUC, with 95 % intervals", "ltmia", "best published attack"} <= set(texts)
    assert "var(" not in drawing  # no page gives it colours
    assert drawing == draw_evaluation(
        RESULTS | {"odd.<&$.a": measured(ltmia=0.6, wbc=None)}, RECIPES | {"odd.<&$.a": {}}
    )


def test_figures_and_intervals_are_drawn_where_they_are() -> None:
    contests = [Contest(name, one["ltmia"].auc, one["loss"].auc) for name, one in RESULTS.items()]
    axes = Figure().add_subplot()
    plot_evaluation(axes, {"all": contests}, "ltmia", "best published attack")
    for drawn, attack in zip(axes.containers, ("ltmia", "loss"), strict=True):
        expected = [one[attack].auc for one in RESULTS.values()]
        assert list(drawn.lines[0].get_xdata()) == [measure.value for measure in expected]
        spans = [segment[:, 0] for segment in drawn.lines[2][0].get_segments()]
        np.testing.assert_allclose(spans, [(measure.low, measure.high) for measure in expected])


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
    done = run("evaluate", str(tmp_path / "model"), *held_out, "-o", str(tmp_path / "test"))
    assert done.returncode == 0, done.stderr
    assert "corpus late (1)" in done.stdout
    figures = json.loads((tmp_path / "test" / "evaluation.json").read_text("utf-8"))
    assert set(figures) == {"tiny.early.quick", "tiny.late.quick"}
    assert {"ltmia", "ez_mia", "wbc", "difference"} <= set(figures["tiny.late.quick"])
    assert "| AUC of ltmia | early | late | all |" in done.stdout
    assert "tiny.late.quick" in (tmp_path / "test" / "evaluation.svg").read_text("utf-8")
    written = {path.name for path in (tmp_path / "test").iterdir() if not path.name.startswith(".")}
    assert written == {"evaluation.json", "evaluation.md", "evaluation.svg"}
    refused = run("evaluate", str(tmp_path / "model"), str(stores), "-o", str(tmp_path / "test"))
    assert refused.returncode == 2
    assert "demo.early.quick" in refused.stderr
    with (tmp_path / "test" / "evaluation.md").open("a") as file:
        file.write("my conclusions")
    classifier = MembershipClassifier.from_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"evaluation\.md: was changed since ltmia wrote it"):
        evaluate(classifier, find_combinations(map(Path, held_out)), tmp_path / "test", overwrite=True)
    assert (tmp_path / "test" / "evaluation.md").read_text("utf-8").endswith("my conclusions")


def test_stores_are_found_at_any_depth_and_their_absence_is_named(stores: Path, tmp_path: Path) -> None:
    found = find_combinations([stores.parent])
    assert len(found) == 4
    assert {recipe_of(combination)["corpus"] for combination in found} == {"early", "late"}
    with pytest.raises(StoreError, match="no finished store"):
        find_combinations([tmp_path])


def test_what_was_trained_on_is_not_evaluated(stores: Path, tmp_path: Path) -> None:
    combinations = find_combinations([stores])
    classifier = MembershipClassifier()
    classifier.domain_ = TrainingDomain.of(combinations[:1], "excess")
    with pytest.raises(StoreError, match="trained on these"):
        evaluate(classifier, combinations, tmp_path)
