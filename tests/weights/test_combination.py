"""An output score beside the weights: weighed as if the groups were known, and never by its unit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from ltmia.weights.combination import add_output_score

N = 3000


def two_scores(strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A third of the texts was used; log-odds from a normal of two standard deviations, a score of given strength."""
    rng = np.random.default_rng(seed)
    used = rng.random(N) < 1 / 3
    evidence = rng.normal(2.0 * used)
    log_odds = 2.0 * (evidence - 1.0) + np.log(0.5)
    return used, log_odds, rng.normal(strength * used)


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_the_weight_is_the_one_that_labels_would_give(strength: float) -> None:
    used, log_odds, score = two_scores(strength)
    oracle = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(score[:, None], used)
    added = add_output_score(log_odds, score) - log_odds
    slope = np.ptp(added) / np.ptp(score)
    assert slope == pytest.approx(oracle.coef_[0, 0], rel=0.25, abs=0.1)
    together = roc_auc_score(used, log_odds + added)
    assert together >= max(roc_auc_score(used, log_odds), roc_auc_score(used, score)) - 0.003


def test_what_both_scores_get_wrong_alike_counts_once() -> None:
    """The score is the log-odds with noise: it says nothing new, however well it ranks by itself."""
    rng = np.random.default_rng(3)
    used, log_odds, _ = two_scores(0.0)
    score = log_odds + rng.normal(size=N)
    assert roc_auc_score(used, score) > 0.85
    added = add_output_score(log_odds, score) - log_odds
    assert np.std(added) < 0.2 * np.std(log_odds)


def test_a_score_of_nothing_changes_next_to_nothing() -> None:
    used, log_odds, score = two_scores(0.0)
    assert roc_auc_score(used, add_output_score(log_odds, score)) > roc_auc_score(used, log_odds) - 0.003


def test_a_score_that_falls_with_the_log_odds_counts_for_nothing() -> None:
    _, log_odds, score = two_scores(1.5)
    np.testing.assert_allclose(add_output_score(log_odds, -score), log_odds)


def test_unit_and_zero_of_the_score_do_not_matter() -> None:
    _, log_odds, score = two_scores(1.0)
    np.testing.assert_allclose(
        add_output_score(log_odds, 1e4 * score - 77), add_output_score(log_odds, score), atol=1e-6
    )


@given(
    arrays(np.float64, 7, elements=st.floats(-50, 50) | st.just(np.nan)),
    arrays(np.float64, 7, elements=st.floats(-1e6, 1e6) | st.just(np.nan)),
)
def test_a_text_has_a_score_where_it_has_both(log_odds: np.ndarray, score: np.ndarray) -> None:
    found = add_output_score(log_odds, score)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(log_odds) & np.isfinite(score))


def test_no_text_at_all() -> None:
    assert len(add_output_score(np.zeros(0), np.zeros(0))) == 0
