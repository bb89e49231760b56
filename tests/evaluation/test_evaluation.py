"""Metrics, intervals, calibration and tests against definitions, scikit-learn and simulation."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from ltmia.evaluation.bootstrap import resampled_figures, resamples
from ltmia.evaluation.calibration import judge_audit, split_halves
from ltmia.evaluation.conformal import conformal_p_values, judge, q_values
from ltmia.evaluation.controls import bag_of_words, length_bucket_rows
from ltmia.evaluation.intervals import measure_attack, proportion
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import auc, roc_curve, tpr_at_fpr
from ltmia.evaluation.set_test import collection_test

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda x: np.array(x, float))


@given(members=scores, nonmembers=scores)
def test_auc_equals_scikit_learn_on_ties(members: np.ndarray, nonmembers: np.ndarray) -> None:
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    expected = roc_auc_score(labels, np.concatenate([members, nonmembers]))
    assert auc(members, nonmembers) == pytest.approx(expected)


@given(members=scores, nonmembers=scores)
def test_roc_equals_scikit_learn(members: np.ndarray, nonmembers: np.ndarray) -> None:
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    fpr, tpr, _ = sklearn_roc(labels, np.concatenate([members, nonmembers]), drop_intermediate=False)
    curve = roc_curve(members, nonmembers)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)


@given(members=scores, nonmembers=scores, fpr=st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_tpr_is_the_largest_whose_fpr_is_allowed(members: np.ndarray, nonmembers: np.ndarray, fpr: float) -> None:
    thresholds = [-np.inf, *members, *nonmembers]
    allowed = [(members > t).mean() for t in thresholds if (nonmembers > t).mean() <= fpr]
    # A threshold below every score flags all; it is reachable only when the whole FPR is allowed.
    best = max([*allowed, 1.0] if fpr == 1.0 else allowed)
    assert tpr_at_fpr(members, nonmembers, fpr) == pytest.approx(best)


def test_a_constant_score_finds_nobody() -> None:
    assert tpr_at_fpr(np.ones(50), np.ones(50), 0.1) == 0.0


def test_unscorable_texts_are_left_out_and_infinities_kept() -> None:
    assert auc(np.array([np.nan, np.inf]), np.array([0.0, np.nan])) == 1.0
    assert np.isnan(auc(np.array([np.nan]), np.array([1.0])))


def test_tpr_is_null_with_a_reason_where_n_is_too_small() -> None:
    rng = np.random.default_rng(0)
    found = measure_attack(rng.normal(1, 1, 200), rng.normal(0, 1, 1000))
    assert found.tpr_at_fpr["0.01"].value is not None
    assert found.tpr_at_fpr["0.001"].value is None
    assert "10,000 are needed" in (found.tpr_at_fpr["0.001"].reason or "")


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_one_sided_input_gives_nulls_with_a_reason(n: int, m: int) -> None:
    found = measure_attack(np.zeros(n), np.zeros(m))
    assert found.auc.value is None
    assert "no scorable" in (found.auc.reason or "")


@given(scores, scores, st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 10**6]))
def test_figures_of_a_resample_are_those_of_its_texts(
    members: np.ndarray, nonmembers: np.ndarray, seed: int, at_once: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.integers(0, 3, len(side)) for side in (members, nonmembers)]
    fprs = (0.0, 0.1, 0.5, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmia.evaluation.bootstrap.COUNTS_AT_ONCE", at_once)
        drawn = list(resamples(groups, 5, seed))
    assert sum(len(counts[0]) for counts in drawn) == 5
    for counts in drawn:
        figures = resampled_figures(members, nonmembers, counts, fprs)
        for row, found in enumerate(figures):
            a, b = np.repeat(members, counts[0][row]), np.repeat(nonmembers, counts[1][row])
            assert found.tolist() == [auc(a, b), *(tpr_at_fpr(a, b, fpr) for fpr in fprs)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 9))
def test_groups_are_drawn_whole_and_a_lone_one_text_by_text(groups: list[int], seed: int) -> None:
    (counts, _), *_ = resamples([np.array(groups), np.zeros(3, np.int64)], 20, seed)
    if len(set(groups)) == 1:
        assert (counts.sum(1) == len(groups)).all()
        return
    firsts = [groups.index(group) for group in sorted(set(groups))]
    assert (counts[:, firsts].sum(1) == len(firsts)).all()
    assert (counts == counts[:, [groups.index(group) for group in groups]]).all()


def test_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = measure_attack(rng.normal(1, 1, 150), rng.normal(0, 1, 150), n_resamples=100, seed=seed).auc
        covered += found.low <= 0.7602 <= found.high  # Phi(1 / sqrt 2)
    assert covered >= 35


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 20)
    shift = rng.normal(0, 1, 20)[groups]
    members, nonmembers = shift + rng.normal(0.3, 0.3, 400), rng.normal(0, 1, 400)
    plain = measure_attack(members, nonmembers).auc
    grouped = measure_attack(members, nonmembers, member_groups=groups, nonmember_groups=groups).auc
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)


def test_perfect_separation_keeps_an_honest_interval() -> None:
    found = measure_attack(np.arange(10, 30.0), np.arange(0, 9.0)).auc
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low < 0.85


def test_no_attack_looks_surer_than_a_perfect_one() -> None:
    members, nonmembers = np.arange(100, 140.0), np.arange(0, 60.0)
    perfect = measure_attack(members, nonmembers)
    for lowered in (1, 2, 5):
        worse = np.concatenate([members[lowered:], np.full(lowered, 58.5)])
        found = measure_attack(worse, nonmembers)
        assert found.auc.low <= perfect.auc.low < found.auc.value < 1
        assert found.tpr_at_fpr["0.1"].reason is not None or found.tpr_at_fpr["0.1"].low <= perfect.auc.low


def test_proportion_is_clopper_pearson() -> None:
    assert proportion(0, 10).high == pytest.approx(1 - 0.025 ** (1 / 10))


@given(candidates=scores, calibration=scores)
def test_conformal_p_by_definition(candidates: np.ndarray, calibration: np.ndarray) -> None:
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in candidates]
    np.testing.assert_allclose(conformal_p_values(candidates, calibration), expected)


@pytest.mark.parametrize("digits", [9, 1])
def test_p_values_are_valid_under_the_null(digits: int) -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [conformal_p_values(rng.normal(size=1).round(digits), rng.normal(size=99).round(digits)) for _ in range(3000)]
    )
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / 3000)
    if digits == 9:
        jittered = p - rng.uniform(0, 0.01, len(p))  # p is uniform on 1/100 .. 1
        assert kstest(jittered, "uniform").pvalue > 0.01


def test_nan_passes_through_and_is_no_test() -> None:
    q = q_values(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q[[0, 2]], [0.02, 0.04])
    assert np.isnan(q[1])
    assert not judge(np.array([np.nan]), np.zeros(5), 0.9).flagged.any()


@pytest.mark.parametrize("fdr", [0.05, 0.1])
def test_the_false_discovery_rate_is_held(fdr: float) -> None:
    shares = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        candidates = np.concatenate([rng.normal(2.5, 1, 100), rng.normal(0, 1, 100)])
        flagged = judge(candidates, rng.normal(0, 1, 500), fdr).flagged
        shares.append(flagged[100:].sum() / max(flagged.sum(), 1))
    assert np.mean(shares) <= fdr + 2 * np.std(shares) / np.sqrt(len(shares))


def test_audit_decisions_state_what_became_of_the_promise() -> None:
    rng = np.random.default_rng(0)
    found = judge_audit(rng.normal(4, 1, 200), rng.normal(0, 1, 400), attack="loss", fdr=0.05)
    assert found.summary.n_calibration == 200
    assert found.summary.smallest_p == pytest.approx(1 / 201)
    assert found.summary.n_flagged > 150
    assert found.summary.realized_fdp.value is not None


@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_halves_never_divide_a_group(groups: list[int], seed: int) -> None:
    names = np.array(groups)
    first, second = split_halves(len(groups), names, seed)
    assert sorted([*first, *second]) == list(range(len(groups)))
    assert not set(names[first]) & set(names[second])
    assert len(first), "somebody calibrates"
    assert len(first) <= (len(groups) + 1) // 2 or not len(second), "half of them, or the only group"


@pytest.mark.parametrize("seed", range(20))
def test_a_large_group_never_leaves_nobody_to_calibrate(seed: int) -> None:
    groups = np.concatenate([np.zeros(900, np.int64), np.arange(1, 101)])
    first, second = split_halves(1000, groups, seed)
    assert sorted(groups[first]) == list(range(1, 101))
    assert (groups[second] == 0).all()


def test_non_members_of_one_group_all_calibrate() -> None:
    rng = np.random.default_rng(0)
    one = np.zeros(300, np.int64)
    found = judge_audit(
        rng.normal(5, 1, 50),
        rng.normal(size=300),
        attack="loss",
        fdr=0.05,
        groups=(one[:50], one),
    ).summary
    assert found.n_calibration == 300
    assert found.realized_fdp.value is None
    assert "one group" in (found.realized_fdp.reason or "")


def test_set_test_finds_a_used_collection() -> None:
    rng = np.random.default_rng(0)
    found = collection_test(rng.normal(0.8, 1, 60), rng.normal(0, 1, 200))
    assert found.p_value < 0.01
    assert found.n_for_power < 60


def test_the_set_test_takes_thousands_of_texts() -> None:
    rng = np.random.default_rng(0)
    found = collection_test(rng.normal(size=2000), rng.normal(size=400))
    assert found.reason is None
    assert found.p_value > 0.001


def test_bag_of_words_finds_a_planted_shift_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])
    texts = [" ".join(rng.choice(words, 12)) for _ in range(300)]
    labels = np.repeat([1, 0], 150)
    blind = bag_of_words(texts, labels).scores
    assert 0.35 < auc(blind[labels == 1], blind[labels == 0]) < 0.65
    shifted = [t + (" nineteen" if i < 150 else " eighteen") for i, t in enumerate(texts)]
    blind = bag_of_words(shifted, labels).scores
    assert auc(blind[labels == 1], blind[labels == 0]) > 0.95


def test_bag_of_words_says_why_it_cannot_run() -> None:
    assert "fewer than" in (bag_of_words(["a", "b"], np.array([1, 0])).reason or "")
    few_of_both = bag_of_words(["a", "b"] * 3, np.array([1, 1, 0, 0, 0, 0]), np.arange(6))
    assert "fewer than 5 texts of either kind" in (few_of_both.reason or "")
    empty = bag_of_words([""] * 20, np.repeat([1, 0], 10))
    assert (empty.scores == 0.5).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_length_buckets_hold_every_row_once(lengths: list[int]) -> None:
    buckets = length_bucket_rows(np.array(lengths))
    assert sorted(np.concatenate(buckets)) == list(range(len(lengths)))


def test_the_published_schema_is_that_of_the_results() -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text("utf-8"))
    assert schema == Results.model_json_schema(), "run scripts/results_schema.py"
