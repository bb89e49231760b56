"""The promises, held over many simulated audits whose truth is known; nothing here touches a model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ltmia.evaluation.conformal import conformal_p_values, judge
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.group_decisions import judge_groups
from ltmia.evaluation.set_test import collection_test, permutation_test

RATES = (0.01, 0.05, 0.1)
N_AUDITS = 1000


def slack(values: np.ndarray) -> float:
    """Three standard errors of a mean over independent audits."""
    return 3 * float(np.std(values)) / math.sqrt(len(values))


@pytest.mark.parametrize("law", ["normal", "cauchy", "exponential"])
def test_p_values_of_non_members_are_uniform(law: str) -> None:
    rng = np.random.default_rng(1)
    draw = {"normal": rng.normal, "cauchy": rng.standard_cauchy, "exponential": rng.exponential}[law]
    # One candidate per audit, so that the p-values are independent; each is uniform on 1/100, ..., 1.
    found = np.array([conformal_p_values(draw(size=1), draw(size=99))[0] for _ in range(10_000)])
    assert kstest(found - rng.random(len(found)) / 100, "uniform").pvalue > 0.001
    np.testing.assert_allclose(np.unique(found), np.arange(1, 101) / 100)


@pytest.mark.parametrize("n_values", [2, 5, 30])
def test_ties_only_ever_raise_p_values(n_values: int) -> None:
    rng = np.random.default_rng(2)
    runs = [rng.integers(0, n_values, 100).astype(float) for _ in range(10_000)]
    found = np.array([conformal_p_values(scores[:1], scores[1:])[0] for scores in runs])
    for level in np.linspace(0.01, 0.99, 50):
        share = (found <= level).mean()
        assert share <= level + 4 * math.sqrt(level * (1 - level) / len(found))
    # With ties broken by chance nothing is lost: then p is uniform again.
    strictly = np.array([(scores[1:] > scores[0]).sum() for scores in runs])
    tied = np.array([(scores[1:] == scores[0]).sum() + 1 for scores in runs])
    assert kstest((strictly + rng.random(len(runs)) * tied) / 100, "uniform").pvalue > 0.001


def audit_scores(
    rng: np.random.Generator, n_groups: int, per_group: int, alike: float, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores whose groups share a part `alike` of the variance; members shift by `shift`, every third by twice."""
    groups = np.repeat(np.arange(n_groups), per_group)
    shared = rng.normal(size=n_groups)[groups]
    scores = math.sqrt(alike) * shared + math.sqrt(1 - alike) * rng.normal(size=len(groups))
    return scores + shift * np.where(groups % 3 == 0, 2, 1), groups


# Shifts of 0.4, 1.2 and 2.4 are AUCs of about .65, .83 and .97 with those that are twice as strong.
@pytest.mark.parametrize("shift", [0.4, 1.2, 2.4])
@pytest.mark.parametrize(("n_groups", "per_group", "alike"), [(200, 1, 0.0), (100, 4, 0.2), (50, 10, 0.2)])
def test_records_are_flagged_within_the_rate(shift: float, n_groups: int, per_group: int, alike: float) -> None:
    rng = np.random.default_rng(3)
    proportions: dict[float, list[float]] = {rate: [] for rate in RATES}
    n_audits = N_AUDITS // 3  # with each of three shifts
    for _ in range(n_audits):
        members, _ = audit_scores(rng, n_groups // 2, per_group, alike, shift)
        held_out, _ = audit_scores(rng, n_groups, per_group, alike, 0.0)
        calibration, _ = audit_scores(rng, n_groups, per_group, alike, 0.0)
        judged = judge(np.concatenate([members, held_out]), calibration, 1.0)
        for rate in RATES:
            flagged = judged.q_values <= rate
            proportions[rate].append(flagged[len(members) :].sum() / max(flagged.sum(), 1))
    for rate, found in proportions.items():
        assert np.mean(found) <= rate + slack(np.array(found)), rate


LAYOUTS = [("one", "twenty"), ("twenty", "one"), ("any", "any"), ("any", "one"), ("any", "twenty")]
"""Sizes of the groups judged, and of those that calibrate."""


def sized_scores(
    rng: np.random.Generator, n_groups: int, sizes: str, alike: float, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores of groups of one text, of twenty, or of any number from 1 to 50, small ones more often."""
    drawn = np.exp(rng.uniform(0, math.log(50.99), n_groups)).astype(np.int64)
    n_texts = {"one": np.ones(n_groups, np.int64), "twenty": np.full(n_groups, 20), "any": drawn}[sizes]
    groups = np.repeat(np.arange(n_groups), n_texts)
    shared = rng.normal(size=n_groups)[groups]
    return shift + math.sqrt(alike) * shared + math.sqrt(1 - alike) * rng.normal(size=len(groups)), groups


def group_audits(
    layout: tuple[str, str], alike: float, n_audits: int, n_used: int, n_unused: int
) -> dict[str, np.ndarray]:
    """Judge used and unused groups, many times over: false discovery proportion, power, p-values of the unused."""
    rng = np.random.default_rng(4)
    proportions, power, p_values = [], [], []
    for seed in range(n_audits):
        used, used_groups = sized_scores(rng, n_used, layout[0], alike, 3.0)
        unused, unused_groups = sized_scores(rng, n_unused, layout[0], alike)
        calibration, calibration_groups = sized_scores(rng, 100, layout[1], alike)
        found = judge_groups(
            np.concatenate([used, unused]),
            np.concatenate([used_groups, unused_groups + n_used]),
            calibration,
            calibration_groups,
            0.05,
            seed,
        )
        assert found.numbers.tolist() == list(range(n_used + n_unused))
        flagged = found.decisions.flagged
        proportions.append(flagged[n_used:].sum() / max(flagged.sum(), 1))
        power.append(flagged[:n_used].mean() if n_used else 0.0)
        p_values.append(found.decisions.p_values[n_used:])
    return {"proportions": np.array(proportions), "power": np.array(power), "p_values": np.array(p_values)}


def check_group_audits(layout: tuple[str, str], alike: float, n_audits: int) -> None:
    mixed = group_audits(layout, alike, n_audits, n_used=40, n_unused=40)
    null = group_audits(layout, alike, n_audits, n_used=0, n_unused=60)
    for found in (mixed, null):
        assert found["proportions"].mean() <= 0.05 + slack(found["proportions"]), (layout, alike)
        for level in (0.02, 0.05, 0.2, 0.5):
            # Groups of one audit share their calibration, so the audit is the unit.
            shares = (found["p_values"] <= level).mean(axis=1)
            assert shares.mean() <= level + slack(shares), (layout, alike, level)
    assert mixed["power"].mean() > 0.5, "valid, but not idle"


@pytest.mark.parametrize("alike", [0.0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_flagged_within_the_rate_whatever_their_sizes(layout: tuple[str, str], alike: float) -> None:
    check_group_audits(layout, alike, 60)


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_flagged_within_the_rate_in_a_thousand_audits(layout: tuple[str, str], alike: float) -> None:
    check_group_audits(layout, alike, 1000)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    known=st.lists(st.integers(1, 6), max_size=8),
    seed=st.integers(0, 9),
)
def test_group_p_values_by_definition_where_all_texts_of_a_group_score_alike(
    sizes: list[int], known: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    level, known_level = rng.integers(0, 4, len(sizes)) * 1.0, rng.integers(0, 4, len(known)) * 1.0
    found = judge_groups(
        np.append(np.repeat(level, sizes), np.nan),
        np.append(np.repeat(np.arange(len(sizes)), sizes), 99),
        np.repeat(known_level, known),
        np.repeat(np.arange(len(known)), known),
        0.05,
    )
    assert found.numbers.tolist() == list(range(len(sizes)))
    assert found.n_texts.tolist() == sizes
    for i, k in enumerate(found.n_compared):
        comparable = [a for a, size in zip(known_level, known, strict=True) if size >= k]
        assert found.n_calibration[i] == len(comparable)
        assert 1 <= k <= sizes[i]
        assert 2 * len(comparable) >= len(known)
        if known:
            expected = (1 + sum(a >= level[i] for a in comparable)) / (len(comparable) + 1)
            assert found.decisions.p_values[i] == pytest.approx(expected)
        else:
            assert np.isnan(found.decisions.p_values[i])
            assert not found.decisions.flagged[i]


@pytest.mark.parametrize(("judged", "known"), [("any", "any"), ("any", "one"), ("twenty", "any")])
@pytest.mark.parametrize("alike", [0.2, 0.5])
def test_records_of_unequal_groups_are_flagged_within_the_rate(judged: str, known: str, alike: float) -> None:
    rng = np.random.default_rng(8)
    for n_used, n_unused, shift in ((60, 40, 2.0), (10, 60, 3.0), (0, 60, 0.0)):
        found = []
        for _ in range(150):
            used, _ = sized_scores(rng, n_used, judged, alike, shift)
            unused, _ = sized_scores(rng, n_unused, judged, alike)
            calibration, _ = sized_scores(rng, 60, known, alike)
            flagged = judge(np.concatenate([used, unused]), calibration, 0.05).flagged
            found.append(flagged[len(used) :].sum() / max(flagged.sum(), 1))
        assert np.mean(found) <= 0.05 + slack(np.array(found)), (n_used, n_unused)


@pytest.mark.parametrize(
    ("n_groups", "per_group", "m_groups", "per_other", "alike"),
    [(40, 1, 80, 1, 0.0), (15, 8, 30, 8, 0.5), (10, 20, 100, 2, 0.5), (60, 2, 15, 20, 0.8)],
)
def test_the_set_test_rejects_as_rarely_as_promised(
    n_groups: int, per_group: int, m_groups: int, per_other: int, alike: float
) -> None:
    rng = np.random.default_rng(5)
    found = []
    for seed in range(300):
        candidates, groups = audit_scores(rng, n_groups, per_group, alike, 0.0)
        nonmembers, others = audit_scores(rng, m_groups, per_other, alike, 0.0)
        scores, joint = np.concatenate([candidates, nonmembers]), np.concatenate([groups, others + n_groups])
        found.append(permutation_test(scores, joint < n_groups, joint, seed=seed).p_value)
    for level in (0.05, 0.2):
        share = np.mean(np.array(found) <= level)
        assert share <= level + 3 * math.sqrt(level * (1 - level) / len(found)), (level, share)


def test_as_many_candidates_as_stated_give_the_power_stated() -> None:
    rng = np.random.default_rng(6)
    candidates, groups = audit_scores(rng, 100, 4, 0.5, 0.4)
    nonmembers, others = audit_scores(rng, 100, 4, 0.5, 0.0)
    needed = collection_test(candidates, nonmembers, candidate_groups=groups, nonmember_groups=others).n_for_power
    assert needed is not None
    n_groups = round(needed / 4)
    rejected = []
    for seed in range(150):
        candidates, groups = audit_scores(rng, n_groups, 4, 0.5, 0.4)
        nonmembers, others = audit_scores(rng, n_groups, 4, 0.5, 0.0)
        joint = np.concatenate([groups, others + n_groups])
        scores = np.concatenate([candidates, nonmembers])
        rejected.append(permutation_test(scores, joint < n_groups, joint, seed=seed).p_value <= 0.05)
    assert 0.6 <= np.mean(rejected) <= 0.95, (needed, np.mean(rejected))


def test_the_set_test_says_when_groups_are_too_few() -> None:
    groups = np.repeat(np.arange(2), 30)
    found = collection_test(np.arange(60.0), -np.arange(60.0), candidate_groups=groups, nonmember_groups=groups)
    assert "only 6 ways" in (found.reason or "")
    assert found.p_value is not None
    assert found.p_value > 0.05


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("by_coins", [False, True])
def test_the_bound_exceeds_the_true_epsilon_as_rarely_as_promised(epsilon: float, n: int, by_coins: bool) -> None:
    rng = np.random.default_rng(7)
    keep = math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = []
    for run in range(200):
        member = rng.random(n) < 0.5
        # Randomised response: the score is the true bit with the probability that epsilon allows.
        answer = np.where(rng.random(n) < keep, member, ~member).astype(float)
        bounds.append(epsilon_lower_bound(answer[member], answer[~member], by_coins=by_coins, seed=run).value)
    exceeded = int((np.array(bounds) > epsilon + 1e-9).sum())
    assert exceeded <= 20, "5 % of 200 is 10; 20 is three standard deviations above"
    # Nor is it idle: with many records it comes near.
    assert n < 1000 or np.median(bounds) >= 0.6 * epsilon
