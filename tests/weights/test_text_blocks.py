"""Very many texts in blocks: what all texts have in common stays out of each block, and memory does not add up."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import GradientShape
from ltmia.weights.metric import BATCH_TEXTS, Metric, second_moments
from ltmia.weights.mixture import count_used, fit_groups
from ltmia.weights.solve import normal_equations, solve, weigh_ridges
from ltmia.weights.text_blocks import random_blocks
from ltmia.weights.update_attack import Explanation, WeightsConfig, explain_update

MIB = 2**20


@dataclass(frozen=True)
class Gradients:
    """Gradients (point, text, coordinate) in memory."""

    values: np.ndarray

    @property
    def shape(self) -> GradientShape:
        n_points, n_texts, n_coordinates = self.values.shape
        return GradientShape(n_texts=n_texts, n_points=n_points, n_coordinates=n_coordinates)

    def block(self, point: int, rows: np.ndarray, part: slice) -> np.ndarray:
        return self.values[point][:, part][rows].astype(np.float32)


def explained(values: np.ndarray, update: np.ndarray) -> Explanation:
    """Explain an update by all texts."""
    n_points, n_texts, n = values.shape
    told = Coordinates(places=(), batched=True, change=update, rounding=np.zeros(n), layers=(0,), n_available=n)
    config = WeightsConfig(n_coordinates=n, points=(0.0, 1.0)[:n_points], adaptive=False)
    return explain_update(Gradients(values), np.arange(n_texts), told, config)


def peak_bytes(work, *arguments) -> int:
    """Largest memory that numpy holds while something runs."""
    tracemalloc.start()
    try:
        work(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def auc(used: np.ndarray, score: np.ndarray) -> float:
    return float((score[used][:, None] > score[~used]).mean())


def test_what_all_texts_have_in_common_is_not_put_down_to_the_texts_of_a_block(monkeypatch) -> None:
    rng, n, m = np.random.default_rng(0), 300, 1200
    values, used = rng.normal(size=(1, n, m)) + rng.normal(size=m), np.arange(n) < 100
    update = -values[0][used].sum(axis=0) + 4 * rng.normal(size=m)
    monkeypatch.setattr("ltmia.weights.text_blocks.AT_ONCE", n // 3)
    usage = explained(values, update).usage
    assert auc(used, usage.log_odds) > 0.98
    assert usage.n_used_low <= 100 <= usage.n_used_high
    assert usage.n_used == pytest.approx(100, abs=25)
    assert used[usage.posterior > 0.9].mean() > 0.9


@pytest.mark.parametrize("n_points", [1, 2, 3])
def test_other_texts_get_coefficients_of_their_own_without_a_ridge(n_points: int) -> None:
    rng = np.random.default_rng(n_points)
    values = rng.normal(size=(n_points, 20, 70)) + 2 * rng.normal(size=70)
    metric = Metric(preconditioner=rng.uniform(1, 2, 70), noise=rng.uniform(0.5, 2, 70), n_told=70.0, adaptive=False)
    update, rows, ridges = rng.normal(size=70), np.arange(12), [3.0, 5.0, 7.0][:n_points]
    others = values[:, 12:].sum(axis=1)
    found = normal_equations(Gradients(values), rows, update, metric, others=others)
    solution = solve(found, weigh_ridges(found, ridges))
    # The same as one regression with a column more for each point.
    weights, contrast = metric.preconditioner / metric.noise, {1: [[1]], 2: [[0.5, 0.5], [-1, 1]]}
    contrast[3] = [[1 / 3, 1 / 3, 1 / 3], [-1, 0, 1], [1, -2, 1]]
    own = np.einsum("kp,pnc->knc", np.array(contrast[n_points]), values[:, :12]).reshape(-1, 70) * weights
    columns = np.vstack([own, others * weights])
    penalty = np.diag([*np.repeat(ridges, 12), *np.zeros(n_points)])
    expected = -np.linalg.solve(columns @ columns.T + penalty, columns @ (update / metric.noise))
    np.testing.assert_allclose(solution.alpha, expected[:12], rtol=1e-3, atol=1e-5)
    fit = -expected @ columns
    gap = (2 * fit @ (update / metric.noise) - fit @ fit) / np.sum((update / metric.noise) ** 2)
    assert solution.explained == pytest.approx(gap, abs=1e-4)


def test_others_without_a_gradient_take_nothing_out() -> None:
    rng = np.random.default_rng(4)
    values, update = rng.normal(size=(2, 12, 40)), rng.normal(size=40)
    metric = Metric(preconditioner=np.ones(40), noise=np.ones(40), n_told=40.0, adaptive=False)
    one, other = (
        normal_equations(Gradients(values), np.arange(12), update, metric, others=others)
        for others in (None, np.zeros((2, 40)))
    )
    np.testing.assert_array_equal(one.products, other.products)
    np.testing.assert_array_equal(one.match, other.match)
    assert one.n_told == other.n_told


def test_each_text_is_in_one_block_and_the_others_are_all_texts_outside(monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.text_blocks.AT_ONCE", 7)
    values, rows = np.random.default_rng(1).normal(size=(2, 30, 5)), np.delete(np.arange(30), [3, 11])
    for seed in (0, 0, 1):
        blocks = list(random_blocks(Gradients(values), rows, seed))
        places = np.concatenate([block.places for block in blocks])
        np.testing.assert_array_equal(np.sort(places), np.arange(28))
        assert [len(block.places) for block in blocks] == [7, 7, 7, 7]
        for block in blocks:
            outside = np.setdiff1d(rows, rows[block.places])
            np.testing.assert_allclose(block.others, values[:, outside].sum(axis=1), atol=1e-5)
    again = np.concatenate([block.places for block in random_blocks(Gradients(values), rows, 0)])
    assert not np.array_equal(places, again)
    assert [len(b.places) for b in random_blocks(Gradients(values), rows[:8], 0)] == [4, 4]
    (whole,) = random_blocks(Gradients(values), rows[:7], 0)
    assert whole.others is None


def test_second_moments_are_those_of_the_same_batches_one_by_one() -> None:
    values = np.random.default_rng(2).normal(size=(2, 43, 11)).astype(np.float32)
    rows = np.delete(np.arange(43), [0, 40])
    rng, squares = np.random.default_rng(5), []
    for _ in range(4):
        order = rows[rng.permutation(41)]
        for start in range(0, 40, BATCH_TEXTS):
            squares.append(values[:, order[start : start + BATCH_TEXTS]].mean(axis=(0, 1)) ** 2)
    np.testing.assert_allclose(second_moments(Gradients(values), rows, 5), np.mean(squares, axis=0), rtol=1e-4)


def test_memory_beside_the_regressions_grows_with_the_texts_not_with_their_square() -> None:
    n = 6000
    gradients = Gradients(np.zeros((1, n, 3), np.float32))
    assert peak_bytes(second_moments, gradients, np.arange(n)) < 2 * MIB
    rng, variance = np.random.default_rng(3), np.full(n, 0.2)
    estimate = (np.arange(n) < n // 5) + rng.normal(size=n) * variance**0.5
    assert peak_bytes(count_used, estimate, variance, fit_groups(estimate, variance)) < 4 * MIB


def test_a_second_block_takes_no_more_memory_than_the_first(monkeypatch) -> None:
    rng, size = np.random.default_rng(6), 300
    values, update = rng.normal(size=(2, 2 * size, 30)).astype(np.float32), rng.normal(size=30)
    one = peak_bytes(explained, values[:, :size], update)
    monkeypatch.setattr("ltmia.weights.text_blocks.AT_ONCE", size)
    two = peak_bytes(explained, values, update)
    assert two < one + MIB / 4
    assert two < 1.4 * 16 * (2 * size) ** 2  # the promise, and the tables of one sweep
