"""Divides very many texts at random into blocks, so that each block's regression fits into memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ltmia.weights.gradient_file import PathGradients
from ltmia.weights.metric import blocks

AT_ONCE = 5000
"""Largest number of texts in one regression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBlock:
    """Texts of one regression."""

    places: Int64[np.ndarray, " block"]
    """Positions of its texts among all texts that take part, ascending."""
    others: Float64[np.ndarray, "point coordinate"] | None
    """Sum of the gradients of all texts in other blocks, at each point; None if this is the only block."""


def count_blocks(n_texts: int) -> int:
    """Return the number of blocks that `n_texts` texts are divided into."""
    return max(-(-n_texts // AT_ONCE), 1)


def random_blocks(file: PathGradients, rows: Int64[np.ndarray, " text"], seed: int) -> Iterator[TextBlock]:
    """Divide texts at random into blocks of about equal size.

    Args:
        file: Gradients.
        rows: Rows of the texts that take part.
        seed: Seed of the random division.
    """
    n_blocks = count_blocks(len(rows))
    if n_blocks == 1:
        yield TextBlock(places=np.arange(len(rows)), others=None)
        return
    drawn = np.random.default_rng(seed).permutation(len(rows))
    divided = [np.sort(places) for places in np.array_split(drawn, n_blocks)]
    total = sum_gradients(file, rows)
    for places in divided:
        yield TextBlock(places=places, others=total - sum_gradients(file, rows[places]))


def sum_gradients(file: PathGradients, rows: Int64[np.ndarray, " text"]) -> Float64[np.ndarray, "point coordinate"]:
    """Return the sum of some texts' gradients at each point."""
    total = np.empty((file.shape.n_points, file.shape.n_coordinates))
    for point in range(file.shape.n_points):
        for part in blocks(file.shape.n_coordinates, len(rows)):
            total[point, part] = file.block(point, rows, part).sum(axis=0, dtype=np.float64)
    return total
