"""Finds the coefficients of an update, also of so many texts that the products of their gradients fill the memory.

For many texts, a sample of them chooses the ridges, and conjugate gradients solve the regression of `solve`: each step
reads all gradients from disk twice. A low-rank part of the products makes the steps few (Frangella, Tropp and Udell
2023). How far noise moves the estimates follows from the diagonal of the inverse, which random signs show (Hutchinson
1990).
"""

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import brentq

from ltmia.progress import Report, silent
from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.gradient_matrix import Columns, LowRank, conjugate_gradients, runs
from ltmia.weights.metric import Metric
from ltmia.weights.mixture import estimates_alone
from ltmia.weights.solve import (
    SEARCHED_TEXTS,
    Coefficients,
    Ridges,
    RidgeSolution,
    choose_ridges,
    normal_equations,
    solve,
)

AT_ONCE = 5000
"""Largest number of texts whose products are held in memory."""
PROBES = 8
"""Vectors of random signs, each solved for beside the update and the centre of the coefficients."""
TOLERANCE = 0.05
"""Error of the solution, over the error that the noise of the update gives it."""
SETTLED, MOST_ROUNDS = 0.05, 10
"""Relative change of the noise below which no further round follows, and the largest number of rounds."""


def find_coefficients(
    file: PathGradients,
    rows: Int64[np.ndarray, " text"],
    change: Float64[np.ndarray, " coordinate"],
    metric: Metric,
    report: Report = silent,
    *,
    seed: int,
) -> Coefficients:
    """Find each text's coefficient in an update.

    Memory for more than `AT_ONCE` texts: 14 bytes times `RANK` for each column and each coordinate, 1.2 GB for 100,000
    texts at two points.

    Args:
        file: Gradients.
        rows: Texts that take part.
        change: The update.
        metric: Preconditioner and noise.
        report: Called with progress.
        seed: Seed of the sample on which many texts' ridges are chosen, of the low-rank part and of the probes.

    Raises:
        DataError: If the products of few texts do not fit into memory.
        LinAlgError: If the regression has no solution.
    """
    if len(rows) > AT_ONCE:
        return _of_many(Columns(file, rows, metric, report), change, metric, np.random.default_rng(seed))
    solution = _solve_in_memory(file, rows, change, metric, report)
    estimate, variance = estimates_alone(solution.reduced)
    return Coefficients(
        alpha=solution.alpha,
        standard_error=solution.standard_error,
        explained=solution.explained,
        estimate=estimate,
        variance=variance,
    )


def _solve_in_memory(
    file: PathGradients,
    rows: Int64[np.ndarray, " text"],
    change: Float64[np.ndarray, " coordinate"],
    metric: Metric,
    report: Report,
) -> RidgeSolution:
    """Return the ridge solution; the matrix of all products is let go when this returns."""
    equations = normal_equations(file, rows, change, metric, report)
    return solve(equations, choose_ridges(equations))


def _of_many(
    columns: Columns, change: Float64[np.ndarray, " coordinate"], metric: Metric, rng: np.random.Generator
) -> Coefficients:
    n = len(columns.rows)
    ridges = _ridges_of_a_sample(columns, change, metric, rng)
    low_rank = LowRank(columns, rng)
    update = np.where(np.isfinite(metric.noise), change / metric.noise, 0.0)
    match = -columns.products(update[:, None]).astype(np.float64)
    signs = rng.choice([-1.0, 1.0], (len(match), PROBES))
    found, noise = np.zeros((len(match), 2 + PROBES)), ridges.noise
    is_mean = (np.arange(len(match)) < n).astype(np.float64)[:, None]
    precision = np.array(ridges.values) / noise
    for _ in range(MOST_ROUNDS):
        ridge = np.repeat(noise * precision, n)
        root = np.sqrt(ridge)[:, None]
        found = conjugate_gradients(
            columns.products_with(ridge),
            low_rank.approximate_inverse(ridge),
            np.hstack([match, root**2 * is_mean, root * signs]),
            found,
            TOLERANCE**2 * np.array([noise * len(match), ridge[0] * n] + [len(match)] * PROBES),
        )
        # How much of each coefficient the update tells, and not the prior: the diagonal of 1 - A^-1 ridge.
        told = (1 - signs * root * found[:, 2:]).mean(axis=1).reshape(-1, n).sum(axis=1).clip(1, n - 1)
        # The ridge pulls to a centre, not to zero: the pull is undone below as if it were equal for all, but it is
        # weaker for what texts share, so all estimates would be too large.
        told_of_centre = n - float(found[:n, 1].sum())
        # If this is no larger than the error of the solution, the update does not tell the centre.
        centre = float(found[:n, 0].sum()) / told_of_centre if told_of_centre > TOLERANCE * n else 0.0
        solution = found[:, :1] + centre * found[:, 1:2]
        left = update + columns.sums(solution)[:, 0]
        squares = np.square(solution - centre * is_mean).reshape(-1, n).sum(axis=1)
        prior = float(precision[0])
        # The most likely noise at these ridges, as in `weigh_ridges`, and then the most likely prior (MacKay 1992).
        before, noise = noise, (float(left @ left) + noise * float(precision @ squares)) / metric.n_told
        precision = told / squares
        if abs(noise / before - 1) < SETTLED:
            break
    columns.end()
    alpha, own = solution[:n, 0], low_rank.rest[:n]
    variance = _effective_noise(own, prior, float(told[0])) / own
    shrunk = 1 / (1 + variance * prior)
    return Coefficients(
        alpha=alpha,
        standard_error=shrunk * np.sqrt(variance),
        explained=1 - float(left @ left) / float(update @ update),
        estimate=centre + (alpha - centre) / shrunk,
        variance=variance,
    )


def _effective_noise(own: Float64[np.ndarray, " text"], precision: float, told: float) -> float:
    """Return the noise of a weighted coordinate at which the update tells so many coefficients.

    It is larger than the noise of the update, because what is not known of other texts is noise to each.

    Args:
        own: What each text has of its own; see `LowRank`.
        precision: Inverse variance of the coefficients.
        told: Sum over the texts of the share of the coefficient that the update tells, not the prior.
    """

    def excess(log_noise: float) -> float:
        return float((own / (own + np.exp(log_noise) * precision)).sum()) - told

    middle = float(np.log(np.median(own) / precision))
    return float(np.exp(brentq(excess, middle - 50, middle + 50)))


def _ridges_of_a_sample(
    columns: Columns, change: Float64[np.ndarray, " coordinate"], metric: Metric, rng: np.random.Generator
) -> Ridges:
    """Choose the ridges on some texts, with the sum of all other gradients as a column of its own without a ridge."""
    file, rows = columns.file, columns.rows
    some = np.sort(rng.choice(rows, min(len(rows), SEARCHED_TEXTS), replace=False))
    others = sum_gradients(file, np.setdiff1d(rows, some))
    return choose_ridges(normal_equations(file, some, change, metric, others=others))


def sum_gradients(file: PathGradients, rows: Int64[np.ndarray, " text"]) -> Float64[np.ndarray, "point coordinate"]:
    """Return the sum of some texts' gradients at each point."""
    total = np.zeros((file.shape.n_points, file.shape.n_coordinates))
    for point in range(file.shape.n_points):
        for texts in runs(len(rows), file.shape.n_coordinates):
            run = file.block(point, rows[texts], slice(0, file.shape.n_coordinates))
            total[point] += run.sum(axis=0, dtype=np.float64)
    return total
