"""Published scores: coarse enough to tell less, fine enough for every figure."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from ltmia.evaluation.rounding import published

SCORES = arrays(
    np.float64, st.integers(0, 60), elements=st.one_of(st.floats(-1e6, 1e6), st.just(np.nan), st.just(np.inf))
)


@given(SCORES)
def test_order_and_gaps_are_kept_and_the_step_is_a_power_of_ten(scores: np.ndarray) -> None:
    rounded = published(scores)
    assert ((scores[:, None] <= scores) <= (rounded[:, None] <= rounded)).all(), "no order is turned round"
    finite = np.isfinite(scores)
    np.testing.assert_array_equal(rounded[~finite], scores[~finite])
    if finite.any():
        low, high = np.quantile(scores[finite], [0.25, 0.75])
        scale = high - low if high > low else np.abs(scores[finite]).max()
        assert np.abs(rounded[finite] - scores[finite]).max() <= scale / 200 * (1 + 1e-9) + 1e-12


def test_a_score_of_one_text_alone_keeps_three_digits() -> None:
    assert published(np.array([-3.14159265])).tolist() == [-3.14]
    assert published(np.array([0.0, 0.0])).tolist() == [0.0, 0.0]


def test_figures_hardly_move() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], 5000)
    scores = 1000 + 1e-3 * rng.normal(labels, 1.0)
    rounded = published(scores)
    assert len(np.unique(rounded)) < 1000, "it is rounded"
    assert abs(roc_auc_score(labels, rounded) - roc_auc_score(labels, scores)) < 1e-4
