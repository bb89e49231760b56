"""Feature versions: the published one against a slow oracle, column by column; ours against what
it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltmia.errors import ConfigError
from ltmia.features.columns import LOGRATIO_COLUMNS, feature_columns, published_columns
from ltmia.features.per_token import per_token_features
from ltmia.features.statistics import token_statistics
from ltmia.records import RaggedStatistics, TokenStatistics


def slow_published(a: np.ndarray, b: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """The published features of one text, (pred, 7k + 14), straight from method and raw logits."""
    vocab = a.shape[1]

    def level(logits: np.ndarray, v: int) -> float:
        return np.log(1 + 1 + (logits > logits[v]).sum()) / np.log(vocab + 1)

    rows, losses = [], []
    for at, bt, y in zip(a.astype(np.float64), b.astype(np.float64), truth, strict=True):
        row = [at[y] - max(at[y], bt[y]), bt[y] - max(at[y], bt[y]), level(at, y), level(bt, y)]
        highest, reference_highest = (np.argsort(-x, kind="stable")[:k] for x in (at, bt))
        for u, w in zip(highest, reference_highest, strict=True):
            m = max(at[u], bt[u])
            row += [at[u] - m, bt[u] - m, level(bt, u), level(at, w)]
        for u in np.argsort(at, kind="stable")[:k]:
            m = max(at[u], bt[u])
            row += [at[u] - m, bt[u] - m, level(bt, u)]
        la = -(at[y] - np.log(np.exp(at).sum()))
        lb = -(bt[y] - np.log(np.exp(bt).sum()))
        rows.append(row)
        losses.append([la, lb, la - lb])
    losses = np.array(losses)
    sequence = []
    for column in losses.T:
        sequence += [column.mean(), np.sqrt(((column - column.mean()) ** 2).mean() + 1e-6)]
    sequence.append(losses[:, 2].sum())
    return np.concatenate([rows, losses, np.tile(sequence, (len(rows), 1))], axis=1)


def ragged(a: np.ndarray, b: np.ndarray, truth: np.ndarray, lengths: list[int], k: int) -> RaggedStatistics:
    tokens = token_statistics(torch.tensor(a), torch.tensor(b), torch.tensor(truth), k)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return RaggedStatistics(tokens=tokens, offsets=offsets, vocab_size=a.shape[1])


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    k=st.integers(1, 5),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
def test_published_equals_the_slow_oracle(lengths: list[int], k: int, ties: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, vocab = sum(lengths), 30
    a, b = rng.normal(0, 3, (2, n, vocab)).astype(np.float32)
    if ties:
        a, b = np.round(a), np.round(b)
    truth = rng.integers(0, vocab, n)
    texts = ragged(a, b, truth, lengths, k)
    batch = per_token_features(texts, version="published", seq_len=7)
    assert batch.values.shape == (len(lengths), 7, 7 * k + 14)
    for i, length in enumerate(lengths):
        rows = slice(texts.offsets[i], texts.offsets[i + 1])
        assert batch.mask[i].sum() == length
        assert (batch.values[i, length:] == 0).all()
        if length:
            expected = slow_published(a[rows], b[rows], truth[rows], k)
            np.testing.assert_allclose(batch.values[i, :length], expected, atol=1e-4)


def test_published_has_154_columns_at_k_20() -> None:
    assert len(published_columns(20)) == 154


def test_column_names_match_the_columns() -> None:
    texts = ragged(*np.random.default_rng(0).normal(size=(2, 4, 30)).astype(np.float32), np.arange(4), [4], 6)
    for version in ("published", "logratio"):
        names = feature_columns(version, 6)
        assert len(set(names)) == len(names)
        assert per_token_features(texts, version=version).values.shape[2] == len(names)


def test_logratio_ignores_constants_added_to_all_logits() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, (2, 5, 40)).astype(np.float32)
    shift = rng.normal(0, 5, (5, 1)).astype(np.float32)
    truth = np.arange(5)
    plain, shifted = (
        per_token_features(ragged(x, b, truth, [5], 6), version="logratio").values for x in (a, a + shift)
    )
    np.testing.assert_allclose(plain, shifted, atol=2e-4)


def test_ratio_surprise_has_mean_0_and_spread_1_under_the_reference() -> None:
    """The property the column is named for, checked by summing over every possible next token."""
    rng = np.random.default_rng(3)
    vocab = 25
    b = rng.normal(0, 2, vocab).astype(np.float32)
    a = b + rng.normal(0, 0.01, vocab).astype(np.float32)  # a fine-tune that hardly moved
    texts = ragged(np.tile(a, (vocab, 1)), np.tile(b, (vocab, 1)), np.arange(vocab), [vocab], 5)
    column = LOGRATIO_COLUMNS.index("ratio_surprise_reference")
    surprise = per_token_features(texts, version="logratio").values[0, :, column]
    q = np.exp(b) / np.exp(b).sum()
    assert (q * surprise).sum() == pytest.approx(0, abs=5e-3)
    assert (q * surprise**2).sum() == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("version", ["published", "logratio"])
def test_a_broken_text_is_masked_and_its_neighbours_are_not_touched(version: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, (2, 6, 30)).astype(np.float32)
    healthy = per_token_features(ragged(a, b, np.arange(6), [2, 2, 2], 4), version=version)
    a[2] = np.nan
    broken = per_token_features(ragged(a, b, np.arange(6), [2, 2, 2], 4), version=version)
    assert broken.mask.sum(axis=1).tolist() == [2, 0, 2]
    np.testing.assert_array_equal(broken.values[[0, 2]], healthy.values[[0, 2]])
    assert (broken.values[1] == 0).all()


def test_minus_infinity_is_finite_in_our_version() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, (2, 3, 30)).astype(np.float32)
    a[:, 7] = b[:, 7] = b[1, 8] = a[2, 9] = -np.inf
    batch = per_token_features(ragged(a, b, np.array([7, 8, 9]), [3], 4), version="logratio")
    assert batch.mask.all()
    assert np.isfinite(batch.values).all()


def test_unknown_version_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="published, logratio"):
        feature_columns("v9")


def test_a_text_longer_than_the_padding_is_refused() -> None:
    texts = ragged(*np.zeros((2, 4, 9), np.float32), np.zeros(4, np.int64), [4], 2)
    with pytest.raises(ValueError, match="does not fit"):
        per_token_features(texts, version="published", seq_len=3)


def test_concatenate_and_slice_are_inverse() -> None:
    tokens = ragged(*np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float32), np.arange(5), [5], 3).tokens
    joined = TokenStatistics.concatenate([tokens.slice(0, 2), tokens.slice(2, 5)])
    np.testing.assert_array_equal(joined.top_logp, tokens.top_logp)
    np.testing.assert_array_equal(joined.target_rank, tokens.target_rank)
