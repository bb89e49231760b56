"""The regression of an update on gradients: exact products, the marginal likelihood by its definition, known passes."""

import itertools

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal

from ltmia.errors import DataError
from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import GradientFile, GradientShape, pack_rows
from ltmia.weights.metric import Metric, metric_of, second_moments
from ltmia.weights.mixture import Usage, _badness, count_used, estimates_alone, fit_groups
from ltmia.weights.rounding import observe_update
from ltmia.weights.solve import NormalEquations, choose_ridges, normal_equations, solve, weigh_ridges


def stored(folder, gradients):
    """Gradients (point, text, coordinate) as a finished file."""
    n_points, n_texts, n_coordinates = gradients.shape
    shape = GradientShape(n_texts=n_texts, n_points=n_points, n_coordinates=n_coordinates)
    file = GradientFile(folder, shape, "test")
    for point in range(n_points):
        file.append(point, range(n_texts), gradients[point].astype(np.float32))
    return file


def equations_of(columns, update, n_kinds=1):
    return NormalEquations(
        products=columns @ columns.T,
        match=-columns @ update,
        update_square=float(update @ update),
        n_told=float(len(update)),
        log_noise=0.0,
        n_kinds=n_kinds,
    )


def infer_usage(equations) -> Usage:
    estimate, variance = estimates_alone(equations)
    return count_used(estimate, variance, fit_groups(estimate, variance))


def test_packed_rows_keep_small_and_large_numbers() -> None:
    rows = np.array([[1e-30, 3.0, -2e-7], [0.0, 0.0, 0.0], [1e6, 1.0, 1e-3], [np.nan, 1.0, 2.0]], np.float32)
    packed, scales = pack_rows(rows)
    back = packed.astype(np.float64) * scales[:, None]
    np.testing.assert_allclose(back[0], [0.0, 3.0, -2e-7], rtol=1e-3)
    np.testing.assert_allclose(back[1:3], rows[1:3], rtol=1e-3)
    assert np.isnan(scales[3])


@pytest.mark.parametrize("n_points", [1, 2, 3])
def test_products_are_exact(tmp_path, monkeypatch: pytest.MonkeyPatch, n_points: int) -> None:
    monkeypatch.setattr("ltmia.weights.metric.BLOCK_BYTES", 4 * 7 * n_points * 11)
    rng = np.random.default_rng(n_points)
    gradients = rng.normal(size=(n_points, 9, 60)) * np.exp(rng.normal(size=(n_points, 9, 1)) * 5)
    update, rows = rng.normal(size=60), np.array([0, 2, 3, 5, 6, 7, 8])
    metric = Metric(preconditioner=rng.uniform(1, 9, 60), noise=rng.uniform(0.5, 2, 60), n_told=60.0, adaptive=False)
    metric.noise[4] = np.inf
    found = normal_equations(stored(tmp_path, gradients), rows, update, metric)
    half = gradients.astype(np.float32)[:, rows].astype(np.float64)
    kinds = {1: [half[0]], 2: [half.mean(0), half[-1] - half[0]]}
    kinds[3] = [half.mean(0), half[-1] - half[0], half[0] - 2 * half[min(1, n_points - 1)] + half[-1]]
    columns = np.concatenate(kinds[n_points]) * metric.preconditioner / metric.noise
    size = np.sqrt(np.outer(*[np.diag(columns @ columns.T)] * 2))
    assert np.abs((found.products - columns @ columns.T) / size).max() < 2e-3  # float16 on disk
    weighted = update / metric.noise
    assert np.abs((found.match + columns @ weighted) / np.sqrt(np.diag(size))).max() < 1e-2
    assert found.update_square == pytest.approx(weighted @ weighted)
    assert found.n_told == 60.0


def test_the_evidence_is_the_updates_density() -> None:
    rng = np.random.default_rng(0)
    columns, update = rng.normal(size=(6, 15)), rng.normal(size=15)
    equations = equations_of(columns, update, n_kinds=2)

    def density(values):
        ridges = weigh_ridges(equations, values)
        prior = np.repeat(1 / np.array(values), 3)
        covariance = ridges.noise * (np.eye(15) + (columns.T * prior) @ columns)
        return ridges.evidence, multivariate_normal(np.zeros(15), covariance).logpdf(update)

    (a, exact_a), (b, exact_b) = density([0.3, 2.0]), density([5.0, 0.1])
    assert a - b == pytest.approx(exact_a - exact_b, rel=1e-9)


@pytest.mark.parametrize("spread", [(0.5,), (0.5, 2.0), (0.5, 0.02, 3.0)])
def test_ridges_are_chosen_as_a_fine_grid_chooses_them(spread) -> None:
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(len(spread) * 40, 600))
    update = -(rng.normal(size=len(columns)) * np.repeat(spread, 40)) @ columns + rng.normal(size=600) * 3
    equations = equations_of(columns, update, n_kinds=len(spread))
    grid = itertools.product(*[np.geomspace(0.3, 3e4, 40 if len(spread) < 3 else 10)] * len(spread))
    best = max(weigh_ridges(equations, values).evidence for values in grid)
    assert choose_ridges(equations).evidence > best - 1


def test_slopes_are_taken_out_as_the_whole_system_takes_them() -> None:
    rng = np.random.default_rng(2)
    columns, update = rng.normal(size=(8, 30)), rng.normal(size=30)
    equations = equations_of(columns, update, n_kinds=2)
    ridges = weigh_ridges(equations, [0.7, 3.0])
    whole = np.linalg.solve(equations.products + np.diag([0.7] * 4 + [3.0] * 4), equations.match)
    found = solve(equations, ridges)
    np.testing.assert_allclose(found.alpha, whole[:4], rtol=1e-8)
    rest = update + whole @ columns
    assert found.explained == pytest.approx(1 - rest @ rest / (update @ update))


def test_the_standard_error_is_the_spread_over_draws_of_the_noise() -> None:
    rng = np.random.default_rng(3)
    columns, truth = rng.normal(size=(10, 40)), rng.normal(size=10)
    found = []
    for _ in range(3000):
        equations = equations_of(columns, -truth @ columns + rng.normal(size=40))
        found.append(np.linalg.solve(equations.products + 5 * np.eye(10), equations.match))
    ridges = weigh_ridges(equations, [5.0])
    fixed = type(ridges)(values=ridges.values, noise=1.0, evidence=0.0)
    np.testing.assert_allclose(solve(equations, fixed).standard_error, np.std(found, axis=0), rtol=0.06)


def trained_by_sgd(rng, n_texts, n_weights, passes, rate, batch):
    """Least squares by SGD: the update, and the gradient of each example in the middle between start and end."""
    inputs, answers = rng.normal(size=(n_texts, n_weights)), rng.uniform(1, 3, n_texts) * rng.choice([-1, 1], n_texts)
    start = np.zeros(n_weights)
    weights = start.copy()
    order = rng.permutation(np.repeat(np.arange(n_texts), passes))
    for step in np.array_split(order, len(order) // batch):
        residual = inputs[step] @ weights - answers[step]
        weights -= rate / batch * (residual[:, None] * inputs[step]).sum(0)
    return weights - start, ((inputs @ (start + weights) / 2 - answers)[:, None] * inputs)[None]


def test_alpha_counts_the_passes_of_a_linear_model_trained_by_sgd(tmp_path) -> None:
    rng = np.random.default_rng(4)
    passes = rng.integers(0, 4, 60)
    rate, batch = 1e-4, 4
    update, gradients = trained_by_sgd(rng, 60, 800, passes, rate, batch)
    metric = Metric(preconditioner=np.ones(800), noise=np.ones(800), n_told=800.0, adaptive=False)
    equations = normal_equations(stored(tmp_path, gradients), np.arange(60), update, metric)
    solution = solve(equations, choose_ridges(equations))
    counted = solution.alpha * batch / rate
    assert np.abs(counted - passes).max() < 0.25
    assert (np.round(counted) == passes).all()
    usage = infer_usage(solution.reduced)
    assert ((usage.posterior > 0.5) == (passes > 0)).all()
    assert usage.n_used == pytest.approx((passes > 0).sum(), abs=1)


def simulate(rng, n, used, noise, m=300):
    common = rng.normal(size=m)
    columns = rng.normal(size=(n, m)) + common
    truth = np.zeros(n)
    truth[rng.choice(n, used, replace=False)] = rng.uniform(0.3, 1.0, used)
    return truth, equations_of(columns, -truth @ columns + noise * rng.normal(size=m))


def covered_runs(n_runs):
    """Whether the interval held the truth in each run, and by how much the estimate was off in the middle."""
    rng = np.random.default_rng(5)
    covered, errors = [], []
    for _ in range(n_runs):
        used = int(rng.integers(15, 136))
        _, equations = simulate(rng, 150, used, rng.uniform(4.0, 9.0), 1000)
        usage = infer_usage(solve(equations, choose_ridges(equations)).reduced)
        covered.append(usage.n_used_low <= used <= usage.n_used_high)
        errors.append(usage.n_used - used)
    return np.mean(covered), np.median(errors)


def test_the_number_of_used_texts_is_mostly_covered() -> None:
    covered, error = covered_runs(15)
    assert covered >= 0.8
    assert abs(error) < 4


@pytest.mark.slow
def test_the_number_of_used_texts_is_covered_in_95_of_100_runs() -> None:
    covered, error = covered_runs(200)
    assert 0.92 <= covered <= 0.99
    assert abs(error) < 4


def auc(used, score):
    return (score[used][:, None] > score[~used]).mean()


def test_posteriors_are_calibrated_and_rank_better_than_the_ridge_solution() -> None:
    rng = np.random.default_rng(6)
    truths, posteriors, gains = [], [], []
    for _ in range(25):
        truth, equations = simulate(rng, 80, 30, 4.0)
        solution = solve(equations, choose_ridges(equations))
        usage = infer_usage(solution.reduced)
        truths.append(truth > 0)
        posteriors.append(usage.posterior)
        gains.append(auc(truth > 0, usage.log_odds) - auc(truth > 0, solution.alpha))
    truth, posterior = map(np.concatenate, (truths, posteriors))
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        some = (posterior >= low) & (posterior < high)
        assert abs(truth[some].mean() - posterior[some].mean()) < 0.1
    assert np.mean(gains) > 0


def test_the_interval_covers_when_estimates_are_given_directly() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(40):
        used = int(rng.integers(20, 280))
        truth = np.zeros(300)
        truth[:used] = 1
        variance = rng.uniform(0.05, 0.3, 300)
        estimate = truth + rng.normal(size=300) * np.sqrt(variance)
        usage = count_used(estimate, variance, fit_groups(estimate, variance))
        covered.append(usage.n_used_low <= used <= usage.n_used_high)
    assert np.mean(covered) >= 0.88


def test_groups_have_the_same_shape_in_any_unit() -> None:
    rng = np.random.default_rng(8)
    variance = rng.uniform(0.05, 0.3, 200)
    estimate = (np.arange(200) < 60) + rng.normal(size=200) * np.sqrt(variance)
    one = count_used(estimate, variance, fit_groups(estimate, variance))
    tiny = count_used(estimate * 1e-7, variance * 1e-14, fit_groups(estimate * 1e-7, variance * 1e-14))
    np.testing.assert_allclose(one.posterior, tiny.posterior, atol=1e-3)


def test_second_moments_are_those_of_batches(tmp_path) -> None:
    rng = np.random.default_rng(9)
    common = rng.normal(size=50)
    gradients = rng.normal(size=(1, 400, 50)) * 2 + common
    moments = second_moments(stored(tmp_path, gradients), np.arange(400))
    np.testing.assert_allclose(moments, common**2 + 4 / 8, rtol=0.8)
    assert moments.mean() == pytest.approx((common**2).mean() + 0.5, rel=0.05)


def test_a_metric_weighs_rounding_against_the_misfit() -> None:
    drawn = Coordinates(
        places=(), batched=True, change=np.array([1.0, -2.0, 1.0, 1.0]), rounding=np.array([0.0, 3.0, 0.0, 0.0]),
        layers=(0,), n_available=4,
    )  # fmt: skip
    metric = metric_of(np.array([4.0, 4.0, 4.0, 0.0]), drawn, adaptive=True, power=1.0)
    np.testing.assert_allclose(metric.noise, [1.0, 2.0, 1.0, np.inf])
    assert metric.n_told == pytest.approx(2.25)
    np.testing.assert_allclose(metric.preconditioner[:3], 0.5)
    spread = metric_of(np.array([4.0, 1.0, 4.0, 1.0]), drawn, adaptive=False, power=0.0)
    assert spread.noise[3] / spread.noise[0] == pytest.approx(2.0)
    assert (spread.preconditioner == 1).all()


@pytest.mark.parametrize("width", [0.0, 1.0, 10.0, 40.0])
def test_the_standard_error_holds_for_rounded_weights(tmp_path, width: float) -> None:
    """A linear model with 40 used and 40 unused texts; weights at random places in cells of a width."""
    rng, n = np.random.default_rng(12), 20_000
    gradients, used = rng.normal(size=(80, n)), np.arange(80) < 40
    update = rng.normal(size=n) * 0.7 - 0.7 / 40**0.5 * gradients[used].sum(axis=0)
    base = 100 * rng.normal(size=n)
    target = np.round((base + update) / width) * width if width else base + update
    change, rounding = observe_update(target - base, np.full(n, width))
    told = Coordinates(places=(), batched=True, change=change, rounding=rounding, layers=(0,), n_available=n)
    metric = metric_of(np.ones(n), told, adaptive=False, power=1.0)
    equations = normal_equations(stored(tmp_path, gradients[None]), np.arange(80), change, metric)
    found = solve(equations, weigh_ridges(equations, [0.01 * np.diag(equations.products).mean()]))
    errors = (found.alpha - 0.7 / 40**0.5 * used) / found.standard_error
    assert 0.7 < errors.std() < 1.25
    assert (found.alpha[used][:, None] > found.alpha[~used]).mean() > 0.9


def test_products_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmia.weights.solve.free_bytes", lambda _: 1000)
    file = stored(tmp_path, np.ones((2, 12, 5)))
    metric = Metric(preconditioner=np.ones(5), noise=np.ones(5), n_told=5.0, adaptive=False)
    with pytest.raises(DataError, match="12 texts at once takes"):
        normal_equations(file, np.arange(12), np.ones(5), metric)


def test_a_sample_of_many_texts_chooses_nearly_the_same_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmia.weights.solve.SEARCHED_TEXTS", 100)
    _, equations = simulate(np.random.default_rng(11), 150, 60, 6.0, 1000)
    sampled = choose_ridges(equations)
    monkeypatch.setattr("ltmia.weights.solve.SEARCHED_TEXTS", 1000)
    whole = choose_ridges(equations)
    assert whole.evidence >= sampled.evidence > whole.evidence - 5
    assert sampled.noise == pytest.approx(36, rel=0.1)


def test_the_fits_gradient_is_that_of_its_likelihood() -> None:
    rng = np.random.default_rng(12)
    values, noise = rng.normal(size=40), rng.uniform(0.1, 0.5, 40)
    point = np.array([-0.4, 0.8, -0.7, -1.1])
    assert check_grad(lambda x: _badness(x, values, noise)[0], lambda x: _badness(x, values, noise)[1], point) < 1e-4


def test_the_higher_estimate_has_the_higher_odds_where_the_others_spread_widely() -> None:
    rng = np.random.default_rng(13)
    used = np.arange(500) < 150
    estimate, variance = used * 1.0 + rng.normal(size=500) * np.where(used, 0.1, 0.5), np.full(500, 1e-3)
    usage = count_used(estimate, variance, fit_groups(estimate, variance))
    top = np.sort(estimate)[-50:]
    assert (np.diff(usage.log_odds[np.argsort(estimate)][-50:]) >= 0).all(), top


def test_log_odds_rise_with_the_coefficient_also_far_below_zero() -> None:
    """Three texts that were used many times widen the group of used texts, so that it holds negative numbers too."""
    rng = np.random.default_rng(14)
    estimate, variance = rng.normal(size=400) * 0.3 + 0.5 * (np.arange(400) < 100), np.full(400, 1e-3)
    estimate[:3] = 10, 15, 25
    groups = fit_groups(estimate, variance)
    usage = count_used(estimate, variance, groups)
    assert groups.used_spread > 5 * groups.unused_spread
    order = np.argsort(estimate)
    assert (np.diff(usage.log_odds[order]) > 0).all()
    assert (np.diff(usage.posterior[order]) >= 0).all()
