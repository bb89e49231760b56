"""The regression of very many texts: its parts against dense matrices, its estimates against the truth, its memory."""

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import GradientShape
from ltmia.weights.gradient_matrix import TASK, Columns, LowRank, conjugate_gradients
from ltmia.weights.metric import BATCH_TEXTS, Metric, second_moments
from ltmia.weights.mixture import count_used, fit_groups
from ltmia.weights.regression import find_coefficients, sum_gradients
from ltmia.weights.solve import normal_equations, solve, weigh_ridges
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


def drawn(
    n_points: int, n_texts: int, n_coordinates: int, seed: int
) -> tuple[Gradients, np.ndarray, Metric, np.ndarray]:
    """Random gradients, an update, a metric that leaves one coordinate out, and the columns as a dense matrix."""
    rng = np.random.default_rng(seed)
    values, update = rng.normal(size=(n_points, n_texts, n_coordinates)) + 1, rng.normal(size=n_coordinates)
    noise = rng.uniform(0.5, 2, n_coordinates)
    metric = Metric(preconditioner=rng.uniform(1, 2, n_coordinates), noise=noise, n_told=40.0, adaptive=False)
    noise[3] = np.inf
    contrast = {1: [[1]], 2: [[0.5, 0.5], [-1, 1]], 3: [[1 / 3, 1 / 3, 1 / 3], [-1, 0, 1], [1, -2, 1]]}[n_points]
    dense = np.einsum("kp,pnc->knc", np.array(contrast), values) * metric.preconditioner / noise
    return Gradients(values), update, metric, dense.reshape(-1, n_coordinates)


@pytest.mark.parametrize("n_points", [1, 2, 3])
def test_columns_are_multiplied_as_a_dense_matrix(n_points: int, monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RUN_BYTES", 4 * 50 * 7)  # runs of seven texts
    gradients, _, metric, dense = drawn(n_points, 23, 50, n_points)
    rows = np.delete(np.arange(23), [0, 9])
    dense = dense.reshape(n_points, 23, 50)[:, rows].reshape(-1, 50)
    columns, rng = Columns(gradients, rows, metric), np.random.default_rng(0)
    one, other = rng.normal(size=(len(dense), 3)), rng.normal(size=(50, 2))
    np.testing.assert_allclose(columns.sums(one), dense.T @ one, atol=1e-3)
    np.testing.assert_allclose(columns.products(other), dense @ other, atol=1e-3)
    np.testing.assert_allclose(columns.squares(), (dense**2).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(sum_gradients(gradients, rows), gradients.values[:, rows].sum(axis=1), atol=1e-4)


def test_the_low_rank_part_and_its_inverse_are_those_of_nystroem(monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RANK", 6)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.LEAST_COLUMNS", 1)
    gradients, _, metric, dense = drawn(2, 15, 50, 7)
    low_rank = LowRank(Columns(gradients, np.arange(15), metric), np.random.default_rng(2))
    products = dense @ dense.T
    sums = np.random.default_rng(2).standard_normal((30, 6), np.float32) / np.sqrt(np.diag(products))[:, None]
    part = products @ sums @ np.linalg.solve(sums.T @ products @ sums, sums.T @ products)
    np.testing.assert_allclose(low_rank.factor @ low_rank.factor.T, part, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(low_rank.rest, np.diag(products - part), rtol=1e-3, atol=1e-2)
    ridge, vectors = np.linspace(1, 3, 30), np.random.default_rng(3).normal(size=(30, 4))
    expected = np.linalg.solve(part + np.diag(np.diag(products - part) + ridge), vectors)
    np.testing.assert_allclose(low_rank.approximate_inverse(ridge)(vectors), expected, rtol=1e-2, atol=1e-4)


def test_the_inverse_holds_however_much_texts_have_in_common() -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(size=(1, 200, 300)) + 100 * rng.normal(size=300)
    metric = Metric(preconditioner=np.ones(300), noise=np.ones(300), n_told=300.0, adaptive=False)
    low_rank = LowRank(Columns(Gradients(values), np.arange(200), metric), rng)  # of fewer texts than `RANK`
    wide, ridge = low_rank.factor.astype(np.float64), np.full(200, 20.0)
    matrix = wide @ wide.T + np.diag(low_rank.rest + ridge)
    product = low_rank.approximate_inverse(ridge)(np.eye(200))
    np.testing.assert_allclose(product, np.linalg.inv(matrix), atol=1e-6 / ridge[0])
    assert np.linalg.eigvalsh(product).min() > 0


@pytest.mark.parametrize(("broken", "message"), [("gradient", "not finite"), (0.5, "rounding hides")])
def test_what_cannot_be_solved_is_refused(broken: str | float, message: str, monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", 10)
    monkeypatch.setattr("ltmia.weights.regression.SEARCHED_TEXTS", 10)
    gradients, update, metric, _ = drawn(1, 60, 90, 3)
    rows = np.arange(60)
    rng, chosen = np.random.default_rng(5), np.random.default_rng(1).choice(rows, 10, replace=False)
    if broken == "gradient":
        gradients.values[0, np.setdiff1d(rows, chosen)[:2], 5] = [1e25, -1e25]  # their sum is zero
    else:
        update, metric = -rng.normal(size=60) @ gradients.values[0], replace(metric, n_told=broken)
    with pytest.raises(np.linalg.LinAlgError, match=message):
        find_coefficients(gradients, rows, update, metric, seed=1)


def test_progress_of_the_reads_rises_to_about_the_expected_end(monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", 10)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RUN_BYTES", 4 * 90 * 7)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.EXPECTED_STEPS", 3)
    gradients, update, metric, _ = drawn(2, 30, 90, 8)
    seen = []
    find_coefficients(
        gradients, np.arange(30), update, metric, lambda task, done, total: seen.append((task, done, total)), seed=1
    )
    assert all(task == TASK for task, _, _ in seen)
    reads = [done for _, done, _ in seen[:-1]]
    assert reads == sorted(set(reads))
    assert max(np.diff(reads)) <= 7  # texts of a run
    assert all(done <= total for _, done, total in seen)
    assert reads[-1] % 30 == 0
    assert seen[-1] == (TASK, reads[-1], reads[-1])  # it ends, however few reads it took


def test_conjugate_gradients_solve_and_say_when_they_do_not(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    root, wanted = rng.normal(size=(20, 30)), rng.normal(size=(20, 3))
    matrix = root @ root.T
    given = (lambda x: matrix @ x, lambda x: x / np.diag(matrix)[:, None], wanted)
    found = conjugate_gradients(*given, rng.normal(size=(20, 3)), np.full(3, 1e-18))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, wanted), rtol=1e-6, atol=1e-9)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.MOST_STEPS", 2)
    with pytest.raises(np.linalg.LinAlgError, match="2 steps"):
        conjugate_gradients(*given, np.zeros((20, 3)), np.full(3, 1e-18))


@pytest.mark.parametrize("n_used", [15, 100, 210])
def test_estimates_of_many_texts_are_unbiased_and_as_wrong_as_they_say(n_used: int, monkeypatch) -> None:
    rng, n, m = np.random.default_rng(n_used), 300, 900
    values, used = rng.normal(size=(1, n, m)) + rng.normal(size=m), np.arange(n) < n_used
    truth = used * rng.uniform(0.5, 1, n)
    update = -truth @ values[0] + 4 * rng.normal(size=m)
    few = explained(values, update)
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", n - 1)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RANK", 40)
    monkeypatch.setattr("ltmia.weights.regression.SEARCHED_TEXTS", 100)
    many = explained(values, update)
    assert np.corrcoef(few.alpha, many.alpha)[0, 1] > 0.99
    assert auc(used, many.usage.log_odds) > auc(used, few.usage.log_odds) - 0.01
    wrong = (many.usage.estimate - truth) / many.usage.error
    assert abs(wrong.mean()) < 0.3
    assert wrong.std() == pytest.approx(1, abs=0.15)
    assert many.explained == pytest.approx(few.explained, abs=0.1)


@pytest.mark.parametrize("n_points", [1, 2])
def test_alpha_of_many_texts_is_the_dense_ridge_solution(n_points: int, monkeypatch) -> None:
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", 10)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RANK", 8)
    monkeypatch.setattr("ltmia.weights.regression.TOLERANCE", 1e-4)
    ridges = []
    inverse = LowRank.approximate_inverse
    monkeypatch.setattr(
        LowRank, "approximate_inverse", lambda self, ridge: ridges.append(ridge) or inverse(self, ridge)
    )
    gradients, update, metric, dense = drawn(n_points, 30, 90, 8)
    found = find_coefficients(gradients, np.arange(30), update, metric, seed=1)
    weighted = update / metric.noise
    # The centre of the prior is one column more, the sum of the means, without a ridge.
    augmented = np.vstack([dense, dense[:30].sum(axis=0)])
    solved = -np.linalg.solve(augmented @ augmented.T + np.diag([*ridges[-1], 0]), augmented @ weighted)
    expected = solved[:-1] + solved[-1] * (np.arange(len(dense)) < 30)
    np.testing.assert_allclose(found.alpha, expected[:30], rtol=1e-2, atol=1e-4 * np.abs(expected).max())
    rest = weighted + expected @ dense
    assert found.explained == pytest.approx(1 - rest @ rest / (weighted @ weighted), abs=1e-3)
    again = find_coefficients(gradients, np.arange(30), update, metric, seed=1)
    np.testing.assert_array_equal(again.estimate, found.estimate)


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


def test_memory_of_many_texts_is_what_is_promised(monkeypatch) -> None:
    rng, n, m = np.random.default_rng(6), 2000, 1000
    values, update = rng.normal(size=(2, n, m)).astype(np.float32), rng.normal(size=m)
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", n - 1)
    monkeypatch.setattr("ltmia.weights.regression.SEARCHED_TEXTS", 100)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RUN_BYTES", MIB)
    monkeypatch.setattr("ltmia.weights.metric.BLOCK_BYTES", MIB)
    assert peak_bytes(explained, values, update) < 14 * 400 * (2 * n + m) + 4 * MIB


def test_memory_of_the_low_rank_part_of_many_coordinates_is_what_is_promised(monkeypatch) -> None:
    n, m, rank = 500, 8000, 50
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RANK", rank)
    monkeypatch.setattr("ltmia.weights.gradient_matrix.RUN_BYTES", MIB // 4)
    rng = np.random.default_rng(6)
    metric = Metric(preconditioner=np.ones(m), noise=np.ones(m), n_told=float(m), adaptive=False)
    columns = Columns(Gradients(rng.normal(size=(1, n, m)).astype(np.float32)), np.arange(n), metric)
    assert peak_bytes(LowRank, columns, rng) < 14 * rank * (n + m)
