"""Columns of `records.parquet` that summarise a record's tokens and reveal no value of a single token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.evaluation.token_bands import USUAL, TokenBands, band_bounds, token_bands
from ltmia.features.store import FeatureStore
from ltmia.scoring.stored_scores import ScoredTexts, StoredTexts

AT_ONCE = 256
"""Texts whose statistics are in memory at a time."""
MOST_NONMEMBERS = 2000
"""Largest number of non-members from whose tokens the bounds are computed; they are taken evenly from all."""


def share_columns(scored: ScoredTexts, nonmembers: np.ndarray) -> dict[str, Any]:
    """Compute columns of `records.parquet`; all are null if a cluster gave only scores or no non-member was scored.

    Args:
        scored: Scored texts.
        nonmembers: Rows of the non-members.
    """
    found: list[TokenBands | None] = [None] * len(scored.n_tokens)
    if isinstance(scored, StoredTexts):
        step = max(-(-len(nonmembers) // MOST_NONMEMBERS), 1)
        bounds = band_bounds(_log_ratios(scored.store, nonmembers[::step]))
        if bounds is not None:
            every = np.arange(len(found))
            found = [token_bands(log_ratio, bounds) for log_ratio in _log_ratios(scored.store, every)]
    columns: dict[str, Any] = {
        name: pa.array([None if bands is None else bands.percent[i] for bands in found], pa.int64())
        for i, name in enumerate(USUAL)
    }
    thirds = [None if bands is None else bands.strongest_third for bands in found]
    return columns | {"strongest_third": pa.array(thirds, pa.string())}


def _log_ratios(store: FeatureStore, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), AT_ONCE):
        for tokens in store.statistics(rows[start : start + AT_ONCE]):
            yield tokens.log_ratio
