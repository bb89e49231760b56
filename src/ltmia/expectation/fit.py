"""What to expect of every position of a set of texts, learned from a sample of the same texts, blind to labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.evidence import MIN_POSITIONS
from ltmia.expectation.model import ExpectedLogRatio, Positions, fold_of, mean_excess
from ltmia.models.tokens import EncodedText
from ltmia.records import Expectation, RaggedStatistics, Texts

N_LEARNED = 2000
"""Texts that the expectation is learned from, evenly over all, if there are as many."""
AT_ONCE = 512
"""Texts whose statistics are in memory at a time."""

Read = Callable[[np.ndarray], RaggedStatistics]
"""Gives the statistics of the rows asked for."""


def folds_of(texts: Texts) -> list[int]:
    """Return each text's fold: by its group, or by what it says where there are no groups."""
    return [fold_of(name) for name in texts.groups or texts.texts]


def sampled_texts(n_texts: int) -> range:
    """Return the rows of the texts that the expectation is learned from."""
    return range(0, n_texts, max(n_texts // N_LEARNED, 1))


def learn_expectation(read: Read, encoded: Sequence[EncodedText], folds: Sequence[int], kind: str) -> ExpectedLogRatio:
    """Learn from texts what the target does to tokens, from a sample where there are many.

    Args:
        read: Statistics of the texts.
        encoded: The same texts tokenised.
        folds: One per text.
        kind: Of the expectation, see `ltmia.features.columns.EXPECTATIONS`.
    """
    sample = np.asarray(sampled_texts(len(encoded)), np.int64)
    parts = [positions(read(rows), rows, encoded, folds, kind) for rows in pieces(sample)]
    return ExpectedLogRatio().fit(Positions.concatenate(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTexts:
    """What to expect of some texts, and how far they exceed it."""

    expectation: Expectation
    """Of all positions, text by text."""
    learned: ExpectedLogRatio
    """What said so."""
    excess: Float64[np.ndarray, " texts"]
    """Mean over each text; NaN where it has too few positions. By the kind `full` it is the attack `excess`."""


def expect_texts(
    read: Read,
    encoded: Sequence[EncodedText],
    folds: Sequence[int],
    kind: str = "full",
    learned: ExpectedLogRatio | None = None,
) -> ExpectedTexts:
    """Return what to expect of all positions of all texts, in their order; learned from them when None."""
    learned = learned or learn_expectation(read, encoded, folds, kind)
    parts, excess = [], []
    for rows in pieces(np.arange(len(encoded))):
        statistics = read(rows)
        parts.append(learned.expect(positions(statistics, rows, encoded, folds, kind)))
        scores = mean_excess(replace(statistics, expectation=parts[-1]))
        excess.append(np.where(np.diff(statistics.offsets) < MIN_POSITIONS, np.nan, scores))
    return ExpectedTexts(expectation=Expectation.concatenate(parts), learned=learned, excess=np.concatenate(excess))


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows of texts into what may be in memory at a time; one empty piece if there are none."""
    for start in range(0, max(len(rows), 1), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def positions(
    statistics: RaggedStatistics, rows: np.ndarray, encoded: Sequence[EncodedText], folds: Sequence[int], kind: str
) -> Positions:
    """Lay out the positions of some texts, as a kind of expectation sees them."""
    return Positions.of(
        statistics, [encoded[row].ids[encoded[row].start - 1 :] for row in rows], [folds[row] for row in rows], kind
    )
