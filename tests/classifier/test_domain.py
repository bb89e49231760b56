"""How far a target lies from all training data, against loops that follow the definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ltmia.classifier.combinations import Combination
from ltmia.classifier.domain import TrainingDomain, feature_means
from ltmia.features.per_token import FeatureBatch
from planted_stores import make_store

ORIGINS = [("gpt2", "novels"), ("gpt2", "email"), ("llama", "novels"), ("opt", "scripture"), ("opt", "email")]


def batch_of(values: np.ndarray, mask: np.ndarray) -> FeatureBatch:
    return FeatureBatch(values=values.astype(np.float32), mask=mask, version="excess", summary=None)


def apart(a: np.ndarray, b: np.ndarray, spread: np.ndarray) -> float:
    return math.sqrt(sum(((x - y) / s) ** 2 for x, y, s in zip(a, b, spread, strict=True)) / len(a))


@pytest.fixture(scope="module")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> list[Combination]:
    root = tmp_path_factory.mktemp("stores")
    made = [Combination(make_store(root / f"c{i}", gain=0.3 * i, seed=i)) for i in range(len(ORIGINS))]
    for combination, origin in zip(made, ORIGINS, strict=True):
        combination.origin = origin
    return made


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_means_are_over_scored_positions_only(data: st.DataObject, n_texts: int, n_tokens: int) -> None:
    values = data.draw(arrays(np.float32, (n_texts, n_tokens, 3), elements=st.floats(-1e3, 1e3, width=32)))
    mask = data.draw(arrays(bool, (n_texts, n_tokens)))
    scored = [values[i, j] for i in range(n_texts) for j in range(n_tokens) if mask[i, j]]
    expected = [math.fsum(float(row[c]) for row in scored) / max(len(scored), 1) for c in range(3)]
    np.testing.assert_allclose(feature_means(batch_of(values, mask)), expected, rtol=1e-6, atol=1e-6)


@given(st.data(), st.integers(1, 6))
def test_the_distance_is_to_the_nearest_combination(data: st.DataObject, n: int) -> None:
    numbers = st.floats(-50, 50, width=32)
    means = data.draw(arrays(np.float64, (n, 4), elements=numbers))
    spread = data.draw(arrays(np.float64, 4, elements=st.floats(1e-3, 10)))
    target = data.draw(arrays(np.float32, (1, 1, 4), elements=numbers))
    domain = TrainingDomain(names=tuple("abcdef"[:n]), means=means, spread=spread, limit=1.0)
    expected = min(apart(row, target[0, 0], spread) for row in means)
    assert domain.distance(batch_of(target, np.array([[True]]))) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_limit_is_how_far_a_new_base_and_corpus_lie(combinations: list[Combination]) -> None:
    domain = TrainingDomain.of(combinations, "excess")
    nearest = [
        min(
            apart(domain.means[i], domain.means[j], domain.spread)
            for j, other in enumerate(ORIGINS)
            if other[0] != origin[0] and other[1] != origin[1]
        )
        for i, origin in enumerate(ORIGINS)
    ]
    assert domain.limit == pytest.approx(np.quantile(nearest, 0.95))
    assert domain.limit < max(nearest)


def test_one_combination_has_a_limit_too(combinations: list[Combination]) -> None:
    assert TrainingDomain.of(combinations[:1], "excess").limit == 1.0


def test_what_is_added_moves_neither_unit_nor_limit(combinations: list[Combination]) -> None:
    narrow = TrainingDomain.of(combinations[:3], "excess")
    wide = narrow.widened(combinations[3:], "excess")
    assert wide.names == tuple(combination.name for combination in combinations)
    assert (wide.limit, wide.spread.tolist()) == (narrow.limit, narrow.spread.tolist())
    last = combinations[-1]
    seen = last.batch(np.concatenate([last.members[:100], last.nonmembers[:100]]), "excess")
    assert wide.distance(seen) == pytest.approx(0, abs=1e-9)
    assert narrow.distance(seen) > 0.1


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_a_limit_that_tells_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="outside_limit"):
        TrainingDomain(names=("a",), means=np.zeros((1, 2)), spread=np.ones(2), limit=limit)
