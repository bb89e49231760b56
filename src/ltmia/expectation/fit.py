"""Fits the expected log-ratio on a sample of texts, without labels, and applies it to all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.evidence import MIN_POSITIONS
from ltmia.expectation.model import ExpectedLogRatio, Positions, fold_of, mean_excess
from ltmia.models.tokens import EncodedText
from ltmia.records import Expectation, RaggedStatistics, Texts

N_LEARNED = 2000
"""Number of texts that the expectation is learned from, spread evenly over all texts."""
AT_ONCE = 512
"""Texts whose statistics are in memory at a time."""

Read = Callable[[np.ndarray], RaggedStatistics]
"""Returns the statistics of the given rows."""


def folds_of(texts: Texts) -> list[int]:
    """Return each text's fold, by its group; without groups, by its content."""
    return [fold_of(name) for name in texts.groups or texts.texts]


def sampled_texts(n_texts: int) -> range:
    """Return the rows of the texts that the expectation is learned from."""
    return range(0, n_texts, max(n_texts // N_LEARNED, 1))


def learn_expectation(read: Read, encoded: Sequence[EncodedText], folds: Sequence[int], kind: str) -> ExpectedLogRatio:
    """Fit the expected log-ratio on texts, or on a sample of them if there are many.

    Args:
        read: Statistics of the texts.
        encoded: The same texts as token ids.
        folds: Fold of each text.
        kind: Kind of expectation, see `ltmia.features.columns.EXPECTATIONS`.
    """
    sample = np.asarray(sampled_texts(len(encoded)), np.int64)
    parts = [positions(read(rows), rows, encoded, folds, kind) for rows in pieces(sample)]
    return ExpectedLogRatio().fit(Positions.concatenate(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTexts:
    """The expectation of some texts, and their excess."""

    expectation: Expectation
    """Expectation of all positions, text by text."""
    learned: ExpectedLogRatio
    """The fitted model."""
    excess: Float64[np.ndarray, " texts"]
    """Mean excess of each text; NaN if it has too few positions. With the kind `full` it is the attack `excess`."""


def expect_texts(
    read: Read,
    encoded: Sequence[EncodedText],
    folds: Sequence[int],
    kind: str = "full",
    learned: ExpectedLogRatio | None = None,
) -> ExpectedTexts:
    """Return the expectation of all positions of all texts; without `learned`, fit it on them first."""
    learned = learned or learn_expectation(read, encoded, folds, kind)
    parts, excess = [], []
    for rows in pieces(np.arange(len(encoded))):
        statistics = read(rows)
        parts.append(learned.expect(positions(statistics, rows, encoded, folds, kind)))
        scores = mean_excess(replace(statistics, expectation=parts[-1]))
        excess.append(np.where(np.diff(statistics.offsets) < MIN_POSITIONS, np.nan, scores))
    return ExpectedTexts(expectation=Expectation.concatenate(parts), learned=learned, excess=np.concatenate(excess))


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Split rows into pieces that fit into memory; one empty piece if there are no rows."""
    for start in range(0, max(len(rows), 1), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def positions(
    statistics: RaggedStatistics, rows: np.ndarray, encoded: Sequence[EncodedText], folds: Sequence[int], kind: str
) -> Positions:
    """Return the positions of some texts as inputs for a kind of expectation."""
    return Positions.of(
        statistics, [encoded[row].ids[encoded[row].start - 1 :] for row in rows], [folds[row] for row in rows], kind
    )
