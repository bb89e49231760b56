"""An output score beside the weights: the fit, what it gains with many and with few used texts, and odd inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from ltmia.weights import combination
from ltmia.weights.combination import add_output_score, logit_worth

LOGIT_APART = 1.5
"""Log-odds of normal scores this many standard deviations apart are this times the score."""


def two_scores(n_used: int, n_texts: int, apart: float, seed: int) -> tuple[np.ndarray, ...]:
    """Membership, coefficients, their errors, and logits; the last is correlated by .25 with the first in both groups.

    Without a distance between the groups, coefficients are noise and nothing else; with one they hold little noise.
    """
    rng = np.random.default_rng(seed)
    used = np.arange(n_texts) < n_used
    noise = rng.multivariate_normal([0, 0], [[1, 0.25], [0.25, 1]], n_texts)
    alpha = 3e-5 * (noise[:, 0] + apart * used)
    error = np.full(n_texts, 3e-5 if apart == 0 else 6e-6)
    return used, alpha, error, (noise[:, 1] + LOGIT_APART * used) * LOGIT_APART / combination.LOGIT_WORTH


@pytest.mark.parametrize("n_used", [20, 100, 500])
@pytest.mark.parametrize("apart", [0.0, 1.5, 3.5])
def test_the_sum_is_nearly_the_best_that_labels_would_give(n_used: int, apart: float) -> None:
    gains, losses = [], []
    for seed in range(6):
        used, alpha, error, logit = two_scores(n_used, 1000, apart, seed)
        both = np.column_stack([alpha / alpha.std(), logit])
        oracle = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(both, used).decision_function(both)
        together = roc_auc_score(used, add_output_score(alpha, error, logit))
        gains.append(together - max(roc_auc_score(used, alpha), roc_auc_score(used, logit)))
        losses.append(roc_auc_score(used, oracle) - together)
    assert np.mean(gains) > -0.005
    assert np.mean(losses) < 0.015


def test_few_texts_without_a_trace_in_the_update_are_ranked_as_the_score_does() -> None:
    losses = []
    for seed in range(10):
        used, alpha, error, logit = two_scores(20, 40, 0.0, seed)
        losses.append(roc_auc_score(used, logit) - roc_auc_score(used, add_output_score(alpha, error, logit)))
    assert np.mean(losses) < 0.01


def test_the_log_odds_are_those_of_the_most_likely_lines() -> None:
    """The same model, maximised by a general optimiser instead of expectation maximisation."""
    _, alpha, error, logit = two_scores(60, 200, 1.5, seed=1)
    values, line = (alpha - alpha.mean()) / alpha.std(), (logit - logit.mean()) / logit.std()
    signal = (1 - (error**2).mean() / alpha.var()) ** 0.5
    expected = combination.MOST_APART * signal * 200 / (200 + combination.HALF_TEXTS)
    odds, likely = [], []
    for share in combination.SHARES:
        before = combination.LOGIT_WORTH * logit
        for _ in range(2000):
            before = before - np.log(expit(before).mean() / share)

        def badness(point: np.ndarray, before: np.ndarray = before) -> float:
            level, apart, slope, log_sigma = point
            rest, sigma = values - level - slope * line, np.exp(log_sigma)
            unused, used = norm.logpdf(rest, 0, sigma), norm.logpdf(rest, apart, sigma)
            prior = norm.logpdf(apart, expected, combination.APART_SPREAD * signal) + norm.logpdf(
                slope, combination.COMMON_SLOPE, combination.SLOPE_SPREAD
            )
            one_more = norm.logpdf(1.0, 0, sigma)
            return -(np.logaddexp(log_expit(-before) + unused, log_expit(before) + used).sum() + prior + one_more)

        found = minimize(badness, [-share * expected, expected, combination.COMMON_SLOPE, 0.0], tol=1e-9)
        level, apart, slope, log_sigma = found.x
        rest = values - level - slope * line
        odds.append(before + apart / np.exp(2 * log_sigma) * (rest - apart / 2))
        likely.append(-found.fun)
    weights = np.exp(np.array(likely) - max(likely))
    np.testing.assert_allclose(
        add_output_score(alpha, error, logit), weights @ np.array(odds) / weights.sum(), atol=0.02
    )


def test_unit_and_zero_of_the_coefficients_do_not_matter() -> None:
    _, alpha, error, logit = two_scores(100, 300, 1.0, seed=0)
    np.testing.assert_allclose(
        add_output_score(1e4 * alpha - 77, 1e4 * error, logit),
        add_output_score(alpha, error, logit),
        rtol=1e-4,
        atol=1e-4,
    )


def test_coefficients_that_are_all_alike_leave_the_scores_order() -> None:
    logit = np.random.default_rng(0).normal(size=30)
    np.testing.assert_array_equal(np.argsort(add_output_score(np.full(30, 2.0), np.ones(30), logit)), np.argsort(logit))


def test_scores_that_are_all_alike_leave_the_coefficients_order() -> None:
    alpha = np.random.default_rng(0).normal(size=30)
    np.testing.assert_array_equal(
        np.argsort(add_output_score(alpha, np.full(30, 0.1), np.full(30, 2.0))), np.argsort(alpha)
    )


@pytest.mark.parametrize("times", [-1000.0, 30.0, 1000.0])
def test_few_texts_far_out_do_not_hide_the_others(times: float) -> None:
    """A text that was trained on many times has a coefficient many times as large."""
    used, alpha, error, logit = two_scores(300, 900, 3.0, seed=0)
    far = np.arange(3) if times > 0 else np.arange(897, 900)
    outlying = alpha.copy()
    outlying[far] *= abs(times)
    others = np.setdiff1d(np.arange(900), far)
    weak = 0.3 * logit
    before, found = (
        roc_auc_score(used[others], add_output_score(some, error, weak)[others]) for some in (alpha, outlying)
    )
    assert found > before - 0.025, "left as they are, they take .08 to .13 away, and up to .7"
    together = add_output_score(outlying, error, np.zeros(900))
    np.testing.assert_array_equal(np.argsort(together), np.argsort(outlying))


NUMBERS = st.floats(-1e6, 1e6) | st.just(np.nan) | st.sampled_from([0.0, 1.0])


@given(arrays(np.float64, 7, elements=NUMBERS), arrays(np.float64, 7, elements=NUMBERS))
def test_a_text_has_a_score_where_it_has_both(alpha: np.ndarray, logit: np.ndarray) -> None:
    found = add_output_score(alpha, np.ones(7), logit)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(alpha) & np.isfinite(logit))


@given(arrays(np.float64, 6, elements=st.sampled_from([0.0, 1.0, 2.0])), st.permutations(range(6)))
def test_ties_stay_ties_and_the_order_of_texts_does_not_matter(alpha: np.ndarray, order: list[int]) -> None:
    logit = np.array([1.0, 1.0, 0.0, 0.0, -1.0, -1.0])
    found = add_output_score(alpha, np.full(6, 0.1), logit)
    np.testing.assert_allclose(add_output_score(alpha[order], np.full(6, 0.1), logit[order]), found[order], atol=1e-4)
    for one in range(0, 6, 2):
        assert (found[one] == found[one + 1]) == (alpha[one] == alpha[one + 1])


def test_one_text_and_no_text() -> None:
    assert np.isfinite(add_output_score(np.array([3.0]), np.array([0.1]), np.array([1.0]))).all()
    assert len(add_output_score(*np.zeros((3, 0)))) == 0


def test_a_unit_of_plainly_grouped_scores_is_worth_what_normal_groups_say() -> None:
    rng = np.random.default_rng(0)
    for apart, spread in ((8.0, 2.4), (9.0, 2.7)):
        logit = rng.normal(apart * (np.arange(2000) < 700), spread)
        shown = apart / spread**2  # the log-odds of two normal groups are this times the score
        assert logit_worth(logit) == pytest.approx(combination.GROUPS_WORTH * shown, rel=0.05)
        assert logit_worth(5 - logit) == pytest.approx(logit_worth(logit), rel=0.01)
    assert logit_worth(rng.normal(9.0 * (np.arange(500) < 200), 1.0)) == 1.0, "no unit is worth more than a logit's"


@pytest.mark.parametrize("case", ["one group", "a few outliers", "too few", "constant"])
def test_without_plain_groups_a_unit_is_worth_what_it_was_elsewhere(case: str) -> None:
    normal = np.random.default_rng(1).normal(size=1000)
    logit = {
        "one group": normal,
        "a few outliers": normal + 30 * (np.arange(1000) < 4),
        "too few": normal[:19] + 30 * (np.arange(19) < 9),
        "constant": np.ones(50),
    }[case]
    assert logit_worth(logit) == combination.LOGIT_WORTH


def test_weak_coefficients_take_nothing_from_strong_scores() -> None:
    rng = np.random.default_rng(2)
    used = np.arange(1500) < 500
    logit, alpha = rng.normal(16.0 * used, 4.0), rng.normal(1.8 * used, 1.0)
    together = add_output_score(alpha, np.full(1500, 0.2), logit)
    assert roc_auc_score(used, together) > roc_auc_score(used, logit) - 0.0005
