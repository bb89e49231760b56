"""What rounded weights tell about the update: against a simulation, and scipy's truncated normal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from ltmia.weights.metric import mean_square
from ltmia.weights.rounding import _truncated_normal, observe_update


@given(st.floats(-30, 30), st.floats(1e-6, 60))
def test_moments_are_those_of_a_truncated_normal(low: float, width: float) -> None:
    mean, variance = _truncated_normal(np.array([low]), np.array([low + width]))
    assert 0 <= variance[0] <= 1
    assert low <= mean[0] <= low + width
    if abs(low) < 6:
        said, spread = truncnorm.stats(low, low + width)
        np.testing.assert_allclose(mean[0], said, atol=2e-4)
        np.testing.assert_allclose(variance[0], spread, atol=2e-4)


@pytest.mark.parametrize("step", [0.0, 0.05, 1.0, 5.0, 20.0])
def test_an_observation_is_as_good_as_it_says(step: float) -> None:
    rng = np.random.default_rng(0)
    base, update = 30 * rng.normal(size=100_000), rng.normal(size=100_000)
    target = base + update if step == 0 else step * np.round((base + update) / step)
    observed, noise = observe_update(target - base, np.full(100_000, step))
    told = np.isfinite(noise)
    estimate = observed[told] / (1 + noise[told])  # the mean, if updates have variance 1
    assert (estimate @ update[told]) / (estimate @ estimate) == pytest.approx(1, abs=0.02)
    left = noise[told] / (1 + noise[told])
    assert np.mean((estimate - update[told]) ** 2) == pytest.approx(left.mean(), rel=0.03, abs=1e-12)
    assert mean_square(observed[told], noise[told]) == pytest.approx(1, rel=0.05)
    if step == 20:
        assert np.corrcoef(estimate, update[told])[0, 1] > 2 * np.corrcoef(target - base, update)[0, 1]
        assert 0.3 < told.mean() < 0.8, "from the middle of a cell nothing crosses its edge"


def test_without_a_crossing_nothing_is_told() -> None:
    _, noise = observe_update(np.linspace(-0.1, 0.1, 100), np.ones(100))
    assert np.isinf(noise).all()


@pytest.mark.parametrize("change", [np.zeros(5), np.array([1.0, -2.0, 0.5])])
def test_exact_updates_are_returned_as_they_are(change: np.ndarray) -> None:
    observed, noise = observe_update(change, np.zeros(len(change)))
    np.testing.assert_allclose(observed, change)
    assert not noise.any()
