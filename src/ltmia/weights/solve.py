"""Explains an update as a weighted sum of gradients: the normal equations, and their ridge solution.

With u_i the preconditioned gradient of text i and y the update, y = - sum_i alpha_i u_i + noise. A text was seen at one
moment, with the gradient of that moment, so with gradients at several points of the path each text has a coefficient
for their mean, one for their slope and one for their bend. All follow from K, the products of the u, and c, minus their
products with y. The ridge of each kind of coefficient is chosen by the marginal likelihood of the update, without
labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from ltmia.errors import DataError
from ltmia.models.batching import free_bytes
from ltmia.progress import Report, silent
from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.metric import Metric, blocks

CONTRASTS = {
    1: np.array([[1.0]]),
    2: np.array([[0.5, 0.5], [-1.0, 1.0]]),
    3: np.array([[1 / 3, 1 / 3, 1 / 3], [-1.0, 0.0, 1.0], [1.0, -2.0, 1.0]]),
}
"""Matrices that turn gradients at evenly spaced points into their mean, slope and bend."""
FIRST_RIDGES = (0.03, 0.3, 1.0)
"""Starting values of the ridges of mean, slope and bend, relative to their mean diagonal."""
FIRST_STEP = 0.6
"""First step of the search, in powers of ten."""
LEAST_RIDGE, MOST_RIDGE = 1e-6, 1e3
SEARCHED_TEXTS = 800
"""Largest number of texts that are used to choose the ridges."""
SEARCH_STEPS = 20
SQUARES = 2
"""Matrices of the size of K that are in memory at once while it is solved."""
TASK = "products of gradients"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalEquations:
    """Normal equations of the regression of the update on the gradients."""

    products: Float64[np.ndarray, "column column"]
    """K. Columns are texts by kind of coefficient: all means, then all slopes, then all bends."""
    match: Float64[np.ndarray, " column"]
    """c."""
    update_square: float
    """Squared norm of the weighted update, without what was taken out of it."""
    n_told: float
    """Number of coordinates by which the noise is measured; see `Metric`."""
    log_noise: float
    """Sum of the logarithms of the noise that coordinates were divided by."""
    n_kinds: int
    """Kinds of coefficient."""
    square_taken_out: float = 0.0
    """Squared norm of what was taken out of the weighted update; see `normal_equations`."""

    @property
    def n_texts(self) -> int:
        """Number of texts."""
        return len(self.match) // self.n_kinds

    def take(self, texts: Int64[np.ndarray, " text"], n_kinds: int) -> "NormalEquations":
        """Return the equations of some texts, with only the first kinds of coefficient."""
        columns = (np.arange(n_kinds)[:, None] * self.n_texts + texts).ravel()
        return NormalEquations(
            products=self.products[np.ix_(columns, columns)],
            match=self.match[columns],
            update_square=self.update_square,
            n_told=self.n_told,
            log_noise=self.log_noise,
            n_kinds=n_kinds,
            square_taken_out=self.square_taken_out,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridges:
    """Ridges of the coefficients, and the fit of the model under them."""

    values: tuple[float, ...]
    """Ridge of each kind, added to the diagonal of K."""
    noise: float
    """Variance of what is not explained, per weighted coordinate."""
    evidence: float
    """Logarithm of the update's marginal likelihood, up to a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeSolution:
    """Coefficients of the texts' mean gradients, with all others integrated out."""

    alpha: Float64[np.ndarray, " text"]
    standard_error: Float64[np.ndarray, " text"]
    """Standard error of alpha, from the noise of the update."""
    explained: float
    """Share of the weighted update's square that all coefficients and what was taken out explain together."""
    reduced: "ReducedEquations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Coefficients of the texts' mean gradients, with and without the prior of each."""

    alpha: Float64[np.ndarray, " text"]
    """Those of the ridge regression."""
    standard_error: Float64[np.ndarray, " text"]
    """Standard error of alpha."""
    explained: float
    """See `RidgeSolution`."""
    estimate: Float64[np.ndarray, " text"]
    """Each text's coefficient as the update alone tells it."""
    variance: Float64[np.ndarray, " text"]
    """Variance of each estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedEquations:
    """Normal equations of the means alone, with slopes and bends averaged out by their own ridges."""

    products: Float64[np.ndarray, "text text"]
    match: Float64[np.ndarray, " text"]
    noise: float
    ridge: float


def normal_equations(
    file: PathGradients,
    rows: Int64[np.ndarray, " text"],
    change: Float64[np.ndarray, " coordinate"],
    metric: Metric,
    report: Report = silent,
    *,
    others: Float64[np.ndarray, "point coordinate"] | None = None,
) -> NormalEquations:
    """Compute K and c, some coordinates at a time: products in float32, their sums in float64.

    Args:
        file: Gradients.
        rows: Texts that take part.
        change: The update.
        metric: Preconditioner and noise.
        report: Called with progress.
        others: Sum of the gradients of other texts at each point. Some of these may be in the update too. What they
            have in common with the texts that take part would be put down to these. So all that lies along this sum is
            taken out of update and gradients, as if it had a coefficient without a ridge.

    Raises:
        DataError: If the products do not fit into memory.
    """
    n_points = file.shape.n_points
    contrast = CONTRASTS[n_points].astype(np.float32)
    alive = np.isfinite(metric.noise)
    weights = np.where(alive, metric.preconditioner / metric.noise, 0.0).astype(np.float32)
    update = np.where(alive, change / metric.noise, 0.0)
    basis = np.zeros((0, len(update))) if others is None else _basis(contrast @ others * weights)
    along = basis @ update
    update -= along @ basis
    n_columns = n_points * len(rows)
    _check_memory(len(rows), n_columns)
    products, match = np.zeros((n_columns, n_columns)), np.zeros(n_columns)
    columns_along = np.zeros((n_columns, len(basis)))
    for part in blocks(file.shape.n_coordinates, n_columns):
        points = np.stack([file.block(point, rows, part) for point in range(n_points)])
        columns: Float32[np.ndarray, "column coord"] = np.tensordot(contrast, points, 1).reshape(n_columns, -1)
        columns *= weights[part]
        products += columns @ columns.T
        wide = columns.astype(np.float64)
        match -= wide @ update[part]
        columns_along += wide @ basis[:, part].T
        report(TASK, part.stop, file.shape.n_coordinates)
    for row, row_along in zip(products, columns_along, strict=True):  # one at a time: together they take as much as K
        row -= columns_along @ row_along
    return NormalEquations(
        products=products,
        match=match,
        update_square=float(update @ update),
        n_told=metric.n_told - len(basis),
        log_noise=float(np.log(metric.noise[alive]).sum()),
        n_kinds=n_points,
        square_taken_out=float(along @ along),
    )


def _basis(vectors: Float64[np.ndarray, "vector coord"]) -> Float64[np.ndarray, "base coord"]:
    """Return orthonormal vectors that span some vectors."""
    _, sizes, found = np.linalg.svd(vectors, full_matrices=False)
    kept: Float64[np.ndarray, "base coord"] = found[sizes > 1e-9 * sizes.max(initial=0.0)]
    return kept


def _check_memory(n_texts: int, n_columns: int) -> None:
    needed, free = SQUARES * 8 * n_columns**2, free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        raise DataError(
            f"solving for {n_texts} texts at once takes {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: give fewer texts, or gradients at one point of the path"
        )


def choose_ridges(equations: NormalEquations, seed: int = 0) -> Ridges:
    """Choose the ridges with the largest marginal likelihood, on a sample of the texts if there are many.

    Raises:
        LinAlgError: If K holds numbers that are not finite.
    """
    some = equations
    if equations.n_texts > SEARCHED_TEXTS:
        drawn = np.sort(np.random.default_rng(seed).choice(equations.n_texts, SEARCHED_TEXTS, replace=False))
        some = equations.take(drawn, equations.n_kinds)
    sizes = _mean_diagonals(some)

    def badness(logs: Float64[np.ndarray, " kind"]) -> float:
        return -weigh_ridges(some, _bounded(logs) * sizes).evidence

    start = np.log10(FIRST_RIDGES[: some.n_kinds])
    first = np.vstack([start, start + FIRST_STEP * np.eye(some.n_kinds)])
    options = {"maxfev": SEARCH_STEPS * some.n_kinds, "xatol": 0.1, "fatol": 1.0, "initial_simplex": first}
    found = minimize(badness, start, method="Nelder-Mead", options=options)
    # The noise is that of all texts: those left out of the sample explain a part of the update too.
    return weigh_ridges(equations, _bounded(found.x) * sizes)


def weigh_ridges(equations: NormalEquations, values: Sequence[float] | Float64[np.ndarray, " kind"]) -> Ridges:
    """Return the marginal likelihood of the update under given ridges, at the noise that makes it largest."""
    diagonal = np.repeat(np.asarray(values, np.float64), equations.n_texts)
    # Transposed, LAPACK finds it in its own order and needs no copy.
    factor, lower = cho_factor(with_diagonal(equations.products, diagonal).T, lower=True, overwrite_a=True)
    half = solve_triangular(factor, equations.match, lower=lower)
    m = equations.n_told
    if m <= 0:
        raise LinAlgError("the noise cannot be told: rounding hides all coordinates of the update")
    noise = max(equations.update_square - float(half @ half), np.finfo(float).tiny) / m
    spread = 2 * float(np.log(np.diag(factor)).sum()) - float(np.log(diagonal).sum())
    evidence = -0.5 * (m * np.log(noise) + spread) - equations.log_noise
    return Ridges(values=tuple(float(value) for value in values), noise=noise, evidence=float(evidence))


def solve(equations: NormalEquations, ridges: Ridges) -> RidgeSolution:
    """Solve for the coefficients of the means, with the error that the noise of the update gives them."""
    reduced, others = _reduce(equations, ridges)
    factor = cho_factor(with_diagonal(reduced.products, reduced.ridge).T, lower=True, overwrite_a=True)
    # Takes half the memory of `inv`.
    inverse = cho_solve(factor, np.eye(equations.n_texts, order="F"), overwrite_b=True)
    alpha = inverse @ reduced.match
    # The noise of the match has the covariance of the products, so that of alpha is R K R = R - ridge R R.
    variance = reduced.noise * (np.diag(inverse) - reduced.ridge * np.einsum("ij,ij->i", inverse, inverse))
    coefficients = np.concatenate([alpha, others(alpha)])
    fit = 2 * float(coefficients @ equations.match) - float(coefficients @ equations.products @ coefficients)
    return RidgeSolution(
        alpha=alpha,
        standard_error=np.sqrt(np.maximum(variance, 0.0)),
        explained=(fit + equations.square_taken_out) / (equations.update_square + equations.square_taken_out),
        reduced=reduced,
    )


def _reduce(equations: NormalEquations, ridges: Ridges) -> tuple[ReducedEquations, "_Others"]:
    n = equations.n_texts
    own, cross = equations.products[:n, :n], equations.products[n:, :n]
    if not len(cross):
        reduced = ReducedEquations(products=own, match=equations.match, noise=ridges.noise, ridge=ridges.values[0])
        return reduced, _Others(np.zeros(0), np.zeros((0, n)))
    held = with_diagonal(equations.products[n:, n:], np.repeat(ridges.values[1:], n))
    factor = cho_factor(held.T, lower=True, overwrite_a=True)
    level, slope = cho_solve(factor, equations.match[n:]), cho_solve(factor, cross)
    reduced = ReducedEquations(
        products=own - cross.T @ slope,
        match=equations.match[:n] - cross.T @ level,
        noise=ridges.noise,
        ridge=ridges.values[0],
    )
    return reduced, _Others(level, slope)


@dataclass(frozen=True, slots=True)
class _Others:
    """The other kinds' best coefficients, given those of the means."""

    level: Float64[np.ndarray, " other"]
    slope: Float64[np.ndarray, "other text"]

    def __call__(self, alpha: Float64[np.ndarray, " text"]) -> Float64[np.ndarray, " other"]:
        return self.level - self.slope @ alpha


def with_diagonal(
    matrix: Float64[np.ndarray, "n n"], added: float | Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n n"]:
    """Return a copy of a matrix with something added to its diagonal; it is the only memory that this takes."""
    copy = np.array(matrix, order="C")
    copy.reshape(-1)[:: len(copy) + 1] += added
    return copy


def _mean_diagonals(equations: NormalEquations) -> Float64[np.ndarray, " kind"]:
    sizes = np.diag(equations.products).reshape(equations.n_kinds, -1).mean(axis=1)
    if not np.isfinite(sizes).all() or not (sizes > 0).all():
        raise LinAlgError(f"mean squared gradients of {sizes}: expected finite numbers above 0")
    return sizes


def _bounded(logs: Float64[np.ndarray, " kind"]) -> Float64[np.ndarray, " kind"]:
    return np.clip(10.0**logs, LEAST_RIDGE, MOST_RIDGE)
