"""Finds updates of low rank, such as adapters that were merged into the weights.

A merged adapter changed each matrix by B A, of a rank of some tens. The rows of the change lie in the space of the rows
of A. In coordinates of that space the update can be read as if B were at hand, and most of the rounding of the stored
weights is gone, because it spreads over all directions.
"""

import itertools
import math

import torch
from jaxtyping import Float32
from torch import Tensor

from ltmia.models.weight_delta import ChangedMatrix

MOST_RANK = 256
"""Largest rank that counts as low, if it is also at most a quarter of what the matrix could have."""
LEAST_GAP = 2.0
"""The last singular value of the update is at least so many times the next."""
NOISE_MARGIN = 1.5
"""The next one is at most so many times the largest singular value of a random matrix with the rest's mean square."""
EXACT = 1e-5
"""Beyond the rank, singular values up to this share of the largest are rounding of the product itself."""


def row_space(matrix: ChangedMatrix) -> Float32[Tensor, "rank in"] | None:
    """Return an orthonormal basis of the rows of a matrix's change, (out, in), if its rank is low; else None.

    The rank is where the singular values drop to the level of noise: the drop is at least `LEAST_GAP`, and what is left
    is no larger than the largest singular value of a random matrix of independent entries,
    sigma (sqrt(out) + sqrt(in)) (Bai and Yin 1993).

    Args:
        matrix: A matrix of a linear layer, at target and base.
    """
    if matrix.base is None or matrix.layout == "other":
        return None
    with torch.no_grad():
        change = matrix.target.cpu().float() - matrix.base.cpu().float()
        if matrix.layout == "transposed":
            change = change.T
        most = min(MOST_RANK, min(change.shape) // 4)
        if most < 1 or not bool(change.isfinite().all()):
            return None
        singular, rows = _leading(change, most + 1)
    rank = _rank(singular.double().tolist(), float(change.double().square().sum()), change.shape)
    return None if rank is None else rows[:rank].contiguous()


def _leading(change: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values and their right singular vectors, (count, in)."""
    if min(change.shape) <= 4 * count:
        _, singular, rows = torch.linalg.svd(change, full_matrices=False)
        return singular[:count], rows[:count]
    with torch.random.fork_rng(devices=[]):  # the sketch is drawn on the CPU
        torch.manual_seed(0)
        _, singular, columns = torch.svd_lowrank(change, q=count + 8, niter=4)
    return singular[:count], columns.T[:count]


def _rank(singular: list[float], square: float, shape: torch.Size) -> int | None:
    """Return the rank at which the rest looks like noise; None if it never does.

    Args:
        singular: Largest singular values, in falling order.
        square: Sum of the squares of all of them.
        shape: Shape of the matrix.
    """
    edge = sum(math.sqrt(side) for side in shape) / math.sqrt(math.prod(shape))
    rest = square
    for rank, (value, following) in enumerate(itertools.pairwise(singular), start=1):
        rest = max(rest - value**2, 0.0)
        noise = max(NOISE_MARGIN * edge * math.sqrt(rest), EXACT * singular[0])
        if following <= noise and value >= LEAST_GAP * following:
            return rank
    return None
