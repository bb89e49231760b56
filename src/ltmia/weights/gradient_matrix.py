"""The weighted gradients of very many texts as a matrix on disk: its products, and linear systems in them."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular

from ltmia.progress import Report, silent
from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.metric import Metric
from ltmia.weights.solve import CONTRASTS

RANK = 400
"""Random sums of columns; their products with all columns are the low-rank part."""
LEAST_COLUMNS = 10
"""Columns for each of these sums at least, so that most of what each column has of its own is outside the part."""
JITTER = 1e-6
"""Share of the sum of a diagonal that is added to it, or of its mean that is the least value on it, so that rounding
does no harm."""
MOST_STEPS = 1000
"""Steps after which a system counts as unsolvable."""
LAG = 10
"""Steps whose gain says how far the solution still is."""
RUN_BYTES = 8 * 2**20
"""Bytes of gradients that are read at a time; more would not stay in the processor's cache."""
EXPECTED_STEPS = 100
"""Steps that progress and plan expect of a regression of very many texts; one of 6,300 texts took 62."""
TASK = "reading gradients for the regression"


def runs(n_texts: int, n_coordinates: int) -> list[slice]:
    """Split texts into runs whose gradients take `RUN_BYTES` in float32."""
    step = max(RUN_BYTES // (4 * n_coordinates), 1)
    return [slice(start, min(start + step, n_texts)) for start in range(0, n_texts, step)]


class Columns:
    """The weighted gradients of all texts as a matrix that stays on disk.

    A column is one kind of coefficient of one text: all means, then all slopes, then all bends.
    """

    def __init__(
        self, file: PathGradients, rows: Int64[np.ndarray, " text"], metric: Metric, report: Report = silent
    ) -> None:
        self.file, self.rows = file, rows
        self._report, self._n_reads = report, 0
        self.contrast = CONTRASTS[file.shape.n_points].astype(np.float32)
        alive = np.isfinite(metric.noise)
        self.weights = np.where(alive, metric.preconditioner / metric.noise, 0.0)
        """Factor of each coordinate."""

    @property
    def n_kinds(self) -> int:
        """Kinds of coefficient."""
        return len(self.contrast)

    def _runs(self) -> Iterator[slice]:
        n = len(self.rows)
        total = n * max(2 * EXPECTED_STEPS, self._n_reads + 1)
        for texts in runs(n, self.file.shape.n_coordinates):
            yield texts
            self._report(TASK, n * self._n_reads + texts.stop, total)
        self._n_reads += 1

    def end(self) -> None:
        """Report that no further read follows: how many there are is not known before."""
        n = len(self.rows) * self._n_reads
        self._report(TASK, n, n)

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
        total *= self.weights[:, None]
        return total

    def products(self, vectors: Float64[np.ndarray, "coordinate vector"]) -> Float32[np.ndarray, "column vector"]:
        """Return the products of all columns with some vectors."""
        weighted: Float32[np.ndarray, "coordinate vector"] = np.empty(vectors.shape, np.float32)
        # Multiplied in float64, without a second copy of that size.
        np.multiply(vectors, self.weights[:, None], out=weighted, casting="same_kind")
        found = np.empty((self.n_kinds, len(self.rows), weighted.shape[1]), np.float32)
        for texts in self._runs():
            by_point = np.stack([self._read(point, texts) @ weighted for point in range(self.n_kinds)])
            found[:, texts] = np.tensordot(self.contrast, by_point, 1)
        return found.reshape(-1, weighted.shape[1])

    def products_with(self, ridge: Float64[np.ndarray, " column"]) -> "Product":
        """Return the product with K, the products of all columns, and a ridge on its diagonal."""
        return lambda vectors: self.products(self.sums(vectors)) + ridge[:, None] * vectors


class LowRank:
    """A part of low rank of K, the products of all columns, and the diagonal of the rest (Nystroem's method).

    The part is that which the products with random sums of columns determine. It holds most of what all texts share.
    """

    def __init__(self, columns: Columns, rng: np.random.Generator) -> None:
        squares = columns.squares()
        least = JITTER * squares.mean()
        drawn = rng.standard_normal((len(squares), max(min(RANK, len(squares) // LEAST_COLUMNS), 1)), np.float32)
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
    enough: Float64[np.ndarray, " vector"],
) -> Float64[np.ndarray, "column vector"]:
    """Solve A x = b for several b at once (Hestenes and Stiefel 1952).

    Args:
        product: The product with A.
        approximate_inverse: The product with a matrix close to the inverse of A, the closer the faster.
        wanted: The b.
        start: A first guess of the x.
        enough: The squared error of each x at which the steps end, in the norm of A. It is taken to be what the last
            `LAG` steps gained (Strakos and Tichy 2002).

    Raises:
        LinAlgError: If numbers are not finite, or the error is still too large after `MOST_STEPS`.
    """
    tiny = np.finfo(float).tiny
    found, gains = start, list[Float64[np.ndarray, " vector"]]()
    residual = wanted - product(found)
    _check_finite(residual)
    near = approximate_inverse(residual)
    direction, size = near, (residual * near).sum(axis=0)
    for _ in range(MOST_STEPS):
        along = product(direction)
        _check_finite(along)
        length = size / np.maximum((direction * along).sum(axis=0), tiny)
        found, residual = found + length * direction, residual - length * along
        gains.append(length * size)
        if len(gains) >= LAG and (np.sum(gains[-LAG:], axis=0) <= enough).all():
            return found
        near = approximate_inverse(residual)
        before, size = size, (residual * near).sum(axis=0)
        direction = near + size / np.maximum(before, tiny) * direction
    raise LinAlgError(f"no solution after {MOST_STEPS} steps; fewer texts are solved in another way")


def _check_finite(numbers: Float[np.ndarray, "*shape"]) -> None:
    if not np.isfinite(numbers).all():
        raise LinAlgError("products of gradients and update are not finite numbers: some of them are too large")
