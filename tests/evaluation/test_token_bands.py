"""Shares of a record's tokens in bands: right by the definition, and blind to the order of tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ltmia.evaluation.token_bands import FEWEST_TOKENS, USUAL, band_bounds, token_bands

RATIOS = st.integers(FEWEST_TOKENS, 200).flatmap(
    lambda n: arrays(np.float32, n, elements=st.one_of(st.floats(-5, 5, width=32), st.just(np.nan)))
)


def test_bands_of_the_nonmembers_themselves_are_the_usual_ones() -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=1000) for _ in range(100)]
    bounds = band_bounds(tokens)
    found = token_bands(np.concatenate(tokens), bounds)
    assert found is not None
    np.testing.assert_allclose(found.percent, list(USUAL.values()), atol=5)
    np.testing.assert_allclose(bounds, [0, 1.2816, 2.3263], atol=0.02)


@given(RATIOS, st.integers(0, 2**32 - 1))
def test_percentages_by_the_definition_and_no_order_but_the_thirds(ratios: np.ndarray, seed: int) -> None:
    bounds = np.array([0.0, 1.0, 2.0])
    found = token_bands(ratios, bounds)
    known = ratios[~np.isnan(ratios)]
    if len(known) < FEWEST_TOKENS:
        assert found is None
        return
    counts = [(known <= 0).sum(), ((known > 0) & (known <= 1)).sum(), ((known > 1) & (known <= 2)).sum()]
    counts.append(len(known) - sum(counts))
    assert all(percent % 5 == 0 for percent in found.percent)
    np.testing.assert_allclose(found.percent, 100 * np.array(counts) / len(known), atol=2.5 + 1e-9)
    parts = np.array_split(known, 3)
    assert found.strongest_third == ("first", "middle", "last")[int(np.argmax([part.mean() for part in parts]))]
    rng = np.random.default_rng(seed)
    shuffled = np.concatenate([np.sort(rng.permutation(part)) for part in parts])
    assert token_bands(shuffled, bounds).percent == found.percent


def test_short_texts_and_no_tokens_give_nothing() -> None:
    assert token_bands(np.zeros(FEWEST_TOKENS - 1), np.zeros(3)) is None
    assert token_bands(np.full(100, np.nan), np.zeros(3)) is None
    assert band_bounds([]) is None
    assert band_bounds([np.array([np.nan])]) is None
