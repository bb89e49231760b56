"""What to expect of a token: learned from other texts alone, and right where the truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.errors import ConfigError
from ltmia.evaluation.roc import auc
from ltmia.expectation.fit import expect_texts
from ltmia.expectation.model import (
    N_FOLDS,
    TOKEN_PRIOR,
    ExpectedLogRatio,
    Positions,
    _Means,
    fold_of,
    mean_excess,
)
from ltmia.features.per_token import per_token_features
from ltmia.features.statistics import token_statistics
from ltmia.models.tokens import EncodedText
from ltmia.records import Expectation, RaggedStatistics

VOCAB, K = 40, 3


def drawn(n_texts: int, length: int, seed: int, shift: float = 0.0) -> tuple[RaggedStatistics, list[np.ndarray]]:
    """Random texts; the target raises token v by `shift` * v / VOCAB wherever it occurs, members or not."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, VOCAB, length + 1) for _ in range(n_texts)]
    truth = np.concatenate([text[1:] for text in ids]) if ids else np.zeros(0, np.int64)
    reference = rng.normal(0, 1, (len(truth), VOCAB)).astype(np.float32)
    target = reference + rng.normal(0, 0.1, reference.shape).astype(np.float32)
    target[np.arange(len(truth)), truth] += shift * truth / VOCAB
    tokens = token_statistics(torch.tensor(target), torch.tensor(reference), torch.tensor(truth), K)
    return RaggedStatistics(tokens=tokens, offsets=np.arange(n_texts + 1) * length, vocab_size=VOCAB), ids


def laid_out(n_texts: int, length: int, seed: int, shift: float = 0.0) -> Positions:
    statistics, ids = drawn(n_texts, length, seed, shift)
    return Positions.of(statistics, ids, [i % N_FOLDS for i in range(n_texts)])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-3, 3)), max_size=30),
    st.lists(st.integers(0, 7), min_size=1, max_size=10),
    st.floats(-2, 2),
)
def test_means_are_drawn_towards_the_prior_as_defined(
    counted: list[tuple[int, float]], asked: list[int], prior: float
) -> None:
    keys, values = np.array([k for k, _ in counted], np.int64), np.array([v for _, v in counted])
    means, counts = _Means(keys, values)(np.array(asked), prior, TOKEN_PRIOR)
    for key, mean, count in zip(asked, means, counts, strict=True):
        own = [v for k, v in counted if k == key]
        assert count == len(own)
        assert mean == pytest.approx((sum(own) + TOKEN_PRIOR * prior) / (len(own) + TOKEN_PRIOR))


def test_a_shift_of_whole_tokens_is_expected_and_leaves_no_excess() -> None:
    positions = laid_out(240, 30, 0, shift=3.0)
    found = ExpectedLogRatio().fit(positions).predict(positions)[:, 0]
    explained = 1 - np.var(positions.log_ratio - found) / np.var(positions.log_ratio)
    assert explained > 0.9


def test_nothing_is_expected_where_nothing_can_be_known() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 240 * 30)
    positions = replace(laid_out(240, 30, 1), log_ratio=noise)
    found = ExpectedLogRatio().fit(positions).predict(positions)[:, 0]
    # Noise cannot be foreseen: a prediction that follows it has seen what it predicts.
    assert abs(np.corrcoef(found, noise)[0, 1]) < 0.05


@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_a_text_says_nothing_of_itself(fold: int) -> None:
    positions = laid_out(60, 40, 2)
    own = positions.fold == fold
    changed = positions.log_ratio + np.where(own, np.random.default_rng(0).normal(0, 5, len(positions)), 0.0)
    before = ExpectedLogRatio().fit(positions).predict(positions)[own]
    other = replace(positions, log_ratio=changed)
    np.testing.assert_array_equal(ExpectedLogRatio().fit(other).predict(other)[own], before)


def test_counts_are_those_of_the_other_two_folds() -> None:
    positions = laid_out(30, 20, 3)
    found = ExpectedLogRatio().fit(positions).predict(positions)
    for place in range(0, len(positions), 37):
        others = positions.fold != positions.fold[place]
        same = others & (positions.token == positions.token[place])
        assert found[place, 1] == same.sum()
        assert found[place, 2] == (same & (positions.previous == positions.previous[place])).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 100))
def test_few_texts_give_finite_expectations(n_texts: int, length: int, seed: int) -> None:
    positions = laid_out(n_texts, length, seed)
    learned = ExpectedLogRatio().fit(positions)
    found = learned.predict(positions)
    assert found.shape == (n_texts * length, 3)
    assert np.isfinite(found).all()
    assert (learned.spreads_ > 0).all()
    if n_texts == 1:  # no other text: nothing is expected
        assert not found.any()


def test_broken_positions_spoil_nobody() -> None:
    positions = laid_out(60, 40, 4)
    broken = positions.log_ratio.copy()
    inputs = positions.inputs.copy()
    broken[:5], inputs[3:9] = np.nan, np.nan
    spoilt = replace(positions, inputs=inputs, log_ratio=broken)
    learned = ExpectedLogRatio().fit(spoilt)
    assert np.isfinite(learned.predict(spoilt)).all()
    assert np.isfinite(learned.spreads_).all()


def test_members_stand_out_by_their_excess_where_their_difference_hides() -> None:
    """Members gain .15 nats a token; whole tokens gain up to 3, and texts differ in which tokens they hold."""
    rng = np.random.default_rng(5)
    n, length = 300, 40
    labels = np.arange(n) % 2
    ids = [rng.integers(0, 20, length + 1) + (20 if rng.random() < 0.5 else 0) for _ in range(n)]
    truth = np.concatenate([text[1:] for text in ids])
    reference = rng.normal(0, 1, (len(truth), VOCAB)).astype(np.float32)
    target = reference.copy()
    target[np.arange(len(truth)), truth] += 3.0 * truth / VOCAB + 0.15 * np.repeat(labels, length)
    tokens = token_statistics(torch.tensor(target), torch.tensor(reference), torch.tensor(truth), K)
    statistics = RaggedStatistics(tokens=tokens, offsets=np.arange(n + 1) * length, vocab_size=VOCAB)
    difference = tokens.log_ratio.reshape(n, length).mean(1, dtype=np.float64)
    encoded = [EncodedText(ids=text) for text in ids]

    def read(rows: np.ndarray) -> RaggedStatistics:
        return statistics if len(rows) == n else pytest.fail("few enough to be read at once")

    excess = expect_texts(read, encoded, [fold_of(str(i)) for i in range(n)]).excess
    assert auc(difference[labels == 1], difference[labels == 0]) < 0.7
    assert auc(excess[labels == 1], excess[labels == 0]) > 0.9


def test_mean_excess_weighs_by_precision() -> None:
    statistics, _ = drawn(4, 6, 6)
    expectation = Expectation(
        log_ratio=np.full(24, 0.5, np.float32),
        token_count=np.zeros(24, np.float32),
        pair_count=np.zeros(24, np.float32),
        spread=np.tile(np.array([4, 2, 2, 1, 1, 1], np.float32), 4),
    )
    known = replace(statistics, expectation=expectation)
    precision = np.array([1 / 16, 1 / 4, 1 / 4, 1, 1, 1])
    scale = np.array([4, 2, 2, 1, 1, 1])
    naive = [((text.log_ratio - 0.5) * precision).sum() / (1 / scale).sum() for text in statistics]
    np.testing.assert_allclose(mean_excess(known), naive, rtol=1e-5)
    assert np.isnan(mean_excess(statistics)).all()


def test_excess_features_are_refused_without_expectation() -> None:
    with pytest.raises(ConfigError, match="expected log-ratios"):
        per_token_features(drawn(2, 5, 7)[0], version="excess")


def test_folds_are_stable_and_even() -> None:
    folds = [fold_of(f"document {i}") for i in range(3000)]
    assert folds == [fold_of(f"document {i}") for i in range(3000)]
    assert all(900 < folds.count(fold) < 1100 for fold in range(N_FOLDS))
