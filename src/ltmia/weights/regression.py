"""Finds the coefficients of an update, also of so many texts that the products of their gradients fill the memory.

For many texts, a sample of them chooses the ridges, and conjugate gradients solve the regression of `solve`: each step
reads all gradients from disk twice. A low-rank part of the products makes the steps few (Frangella, Tropp and Udell
2023). How far noise moves the estimates follows from the diagonal of the inverse, which random signs show (Hutchinson
1990).
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import brentq

from ltmia.progress import Report, silent
from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.metric import BLOCK_BYTES, Metric
from ltmia.weights.mixture import estimates_alone
from ltmia.weights.solve import (
    CONTRASTS,
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
RANK = 400
"""Random sums of columns; their products with all columns are the low-rank part."""
PROBES = 8
"""Vectors of random signs, each solved for beside the update and the centre of the coefficients."""
TOLERANCES = (0.1, 0.1, 0.03)
"""Relative residual at which each round ends. The first two find the noise and the spreads of the coefficients."""
MOST_STEPS = 1000
"""Steps after which a system counts as unsolvable."""
JITTER = 1e-6
"""Share of the mean of a diagonal that is added to it, or is the least value on it, so that rounding does no harm."""
TASK = "texts in a step of the regression"


class Columns:
    """The weighted gradients of all texts as a matrix that stays on disk.

    A column is one kind of coefficient of one text: all means, then all slopes, then all bends. Texts are read in
    runs of 64 MiB.
    """

    def __init__(
        self, file: PathGradients, rows: Int64[np.ndarray, " text"], metric: Metric, report: Report = silent
    ) -> None:
        self.file, self.rows, self.report = file, rows, report
        self.contrast = CONTRASTS[file.shape.n_points].astype(np.float32)
        alive = np.isfinite(metric.noise)
        self.weights = np.where(alive, metric.preconditioner / metric.noise, 0.0)
        """Factor of each coordinate."""

    @property
    def n_kinds(self) -> int:
        """Kinds of coefficient."""
        return len(self.contrast)

    def _runs(self) -> Iterator[slice]:
        n, step = len(self.rows), max(BLOCK_BYTES // (4 * self.file.shape.n_coordinates), 1)
        for start in range(0, n, step):
            yield slice(start, start + step)
            self.report(TASK, min(start + step, n), n)

    def _read(self, point: int, texts: slice | Int64[np.ndarray, " some"]) -> Float32[np.ndarray, "some coordinate"]:
        return self.file.block(point, self.rows[texts], slice(0, self.file.shape.n_coordinates))

    def of(self, texts: slice | Int64[np.ndarray, " some"]) -> Float32[np.ndarray, "kind some coordinate"]:
        """Return the columns of some texts."""
        points = np.stack([self._read(point, texts) for point in range(self.n_kinds)])
        columns: Float32[np.ndarray, "kind some coordinate"] = np.tensordot(self.contrast, points, 1)
        columns *= self.weights.astype(np.float32)
        return columns

    def squares(self) -> Float64[np.ndarray, " column"]:
        """Return the squared norm of each column."""
        runs = (self.of(texts) for texts in self._runs())
        found = [np.einsum("kic,kic->ki", columns, columns, dtype=np.float64) for columns in runs]
        return np.concatenate(found, axis=1).ravel()

    def sums(self, coefficients: Float[np.ndarray, "column vector"]) -> Float64[np.ndarray, "coordinate vector"]:
        """Return sums of all columns, weighted by coefficients."""
        by_kind = coefficients.astype(np.float32).reshape(self.n_kinds, len(self.rows), -1)
        by_point = np.tensordot(self.contrast.T, by_kind, 1)
        total = np.zeros((len(self.weights), by_kind.shape[2]))
        for texts in self._runs():
            for point in range(self.n_kinds):
                total += self._read(point, texts).T @ by_point[point, texts]
        return total * self.weights[:, None]

    def products(self, vectors: Float64[np.ndarray, "coordinate vector"]) -> Float32[np.ndarray, "column vector"]:
        """Return the products of all columns with some vectors."""
        weighted = (vectors * self.weights[:, None]).astype(np.float32)
        found = np.empty((self.n_kinds, len(self.rows), weighted.shape[1]), np.float32)
        for texts in self._runs():
            by_point = np.stack([self._read(point, texts) @ weighted for point in range(self.n_kinds)])
            found[:, texts] = np.tensordot(self.contrast, by_point, 1)
        return found.reshape(-1, weighted.shape[1])


class LowRank:
    """A part of low rank of K, the products of all columns, and the diagonal of the rest (Nystroem's method).

    The part is that which the products with random sums of columns determine. It holds most of what all texts share.
    """

    def __init__(self, columns: Columns, rng: np.random.Generator) -> None:
        squares = columns.squares()
        least = JITTER * squares.mean()
        drawn = rng.standard_normal((len(squares), RANK), np.float32)
        # Divided by the column's norm, no long gradient counts for many.
        drawn /= np.sqrt(np.maximum(squares, least))[:, None].astype(np.float32)
        products = columns.products(columns.sums(drawn))
        own = (drawn.T @ products).astype(np.float64)
        del drawn
        own = (own + own.T) / 2
        _check_finite(own)
        # The products are in float32: the rounding of the largest is what keeps all others above zero.
        own.reshape(-1)[:: len(own) + 1] += JITTER * np.trace(own)
        # With the products R, and those among the drawn sums W = L L', the part is R W^-1 R' = factor factor'.
        root = cholesky(own, lower=True).astype(np.float32)
        self.factor: Float32[np.ndarray, "column rank"] = solve_triangular(
            root, products.T, lower=True, overwrite_b=True
        ).T
        inside = np.einsum("ij,ij->i", self.factor, self.factor, dtype=np.float64)
        self.rest: Float64[np.ndarray, " column"] = np.maximum(squares - inside, least)
        """Squared norm of what the part leaves of each column: what the text has of its own."""

    def approximate_inverse(self, ridge: Float64[np.ndarray, " column"]) -> "Product":
        """Return the product with the inverse of the part, the diagonal of the rest and a ridge together."""
        diagonal = (self.rest + ridge)[:, None]
        # In float64: what all texts share is so much larger than the rest that rounding could make steps diverge.
        scaled_factor = self.factor / np.sqrt(diagonal)
        held = cho_factor(np.eye(self.factor.shape[1]) + scaled_factor.T @ scaled_factor)
        del scaled_factor

        def product(vectors: Float64[np.ndarray, "column vector"]) -> Float64[np.ndarray, "column vector"]:
            # By the identity of Sherman, Morrison and Woodbury.
            scaled = vectors / diagonal
            return scaled - self.factor @ cho_solve(held, self.factor.T @ scaled) / diagonal

        return product


Product = Callable[[Float64[np.ndarray, "column vector"]], Float64[np.ndarray, "column vector"]]
"""The product of a matrix with some vectors."""


def conjugate_gradients(
    product: Product,
    approximate_inverse: Product,
    wanted: Float64[np.ndarray, "column vector"],
    start: Float64[np.ndarray, "column vector"],
    tolerance: float,
) -> Float64[np.ndarray, "column vector"]:
    """Solve A x = b for several b at once (Hestenes and Stiefel 1952).

    Args:
        product: The product with A.
        approximate_inverse: The product with a matrix close to the inverse of A, the closer the faster.
        wanted: The b.
        start: A first guess of the x.
        tolerance: Norm of the residual at the end over that of b, both in the metric of the approximate inverse.

    Raises:
        LinAlgError: If numbers are not finite, or the residual is still too large after `MOST_STEPS`.
    """
    tiny = np.finfo(float).tiny
    found = start
    residual = wanted - product(found)
    _check_finite(residual)
    near = approximate_inverse(residual)
    direction, size = near, (residual * near).sum(axis=0)
    enough = tolerance**2 * (wanted * approximate_inverse(wanted)).sum(axis=0)
    for _ in range(MOST_STEPS):
        _check_finite(size)
        if (size <= enough).all():
            return found
        along = product(direction)
        _check_finite(along)
        length = size / np.maximum((direction * along).sum(axis=0), tiny)
        found, residual = found + length * direction, residual - length * along
        near = approximate_inverse(residual)
        before, size = size, (residual * near).sum(axis=0)
        direction = near + size / np.maximum(before, tiny) * direction
    raise LinAlgError(f"no solution after {MOST_STEPS} steps over all texts")


def _check_finite(numbers: Float[np.ndarray, "*shape"]) -> None:
    if not np.isfinite(numbers).all():
        raise LinAlgError("the products of gradients and update are not finite numbers")


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

    Memory for more than `AT_ONCE` texts: 12 bytes times `RANK` for each column and each coordinate, about 1 GB for
    100,000 texts at two points.

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
    for tolerance in TOLERANCES:
        ridge = np.repeat(noise * precision, n)
        root = np.sqrt(ridge)[:, None]
        found = conjugate_gradients(
            lambda vectors, ridge=ridge: columns.products(columns.sums(vectors)) + ridge[:, None] * vectors,
            low_rank.approximate_inverse(ridge),
            np.hstack([match, root**2 * is_mean, root * signs]),
            found,
            tolerance,
        )
        # How much of each coefficient the update tells, and not the prior: the diagonal of 1 - A^-1 ridge.
        told = (1 - signs * root * found[:, 2:]).mean(axis=1).reshape(-1, n).sum(axis=1).clip(1, n - 1)
        # Without a centre, what all texts share would be told of the used ones' mean, and lift all estimates.
        centre = float(found[:n, 0].sum() / (n - found[:n, 1].sum()))
        solution = found[:, :1] + centre * found[:, 1:2]
        left = update + columns.sums(solution)[:, 0]
        prior = float(precision[0])
        # The most likely values at these shares (MacKay 1992).
        noise = float(left @ left) / (metric.n_told - told.sum())
        precision = told / np.square(solution - centre * is_mean).reshape(-1, n).sum(axis=1)
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
    step = max(BLOCK_BYTES // (4 * file.shape.n_coordinates), 1)
    for point in range(file.shape.n_points):
        for start in range(0, len(rows), step):
            run = file.block(point, rows[start : start + step], slice(0, file.shape.n_coordinates))
            total[point] += run.sum(axis=0, dtype=np.float64)
    return total
