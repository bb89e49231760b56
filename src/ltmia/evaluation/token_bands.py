"""Summaries of a record's tokens that may be passed on: how many stand out, and in which third of the text.

No number here belongs to a single token, and only the third says anything about their order. With both models, a number
per token is enough to reconstruct the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

LEVELS = (0.5, 0.9, 0.99)
"""Shares of the non-members' tokens that lie below the bounds between bands."""
USUAL = {"percent_lowest_50": 50, "percent_next_40": 40, "percent_next_9": 9, "percent_highest_1": 1}
"""Percent of the non-members' tokens in each band, lowest first, by the column of `records.parquet` that holds the
percent of a record's own tokens there."""
STEP = 5
"""Step that percentages are rounded to."""
FEWEST_TOKENS = 30
"""Fewest tokens for a summary: with fewer tokens, it would reveal too much about each."""
THIRDS = ("first", "middle", "last")

Bounds = Float64[np.ndarray, "3"]


@dataclass(frozen=True, slots=True)
class TokenBands:
    """Summary of one text's log-ratios, compared with those of the non-members' tokens."""

    percent: tuple[int, ...]
    """Percent of its tokens in each band, lowest first, each rounded to `STEP`."""
    strongest_third: str
    """Third of the text whose mean log-ratio is highest."""


def band_bounds(log_ratios: Iterable[np.ndarray]) -> Bounds | None:
    """Return the bounds between bands: quantiles over all tokens of non-members.

    Args:
        log_ratios: For each non-member, log p_T - log p_R of its tokens, nats.

    Returns:
        None if there are no tokens.
    """
    tokens = np.concatenate([np.empty(0), *log_ratios])
    tokens = tokens[~np.isnan(tokens)]
    return np.quantile(tokens, LEVELS) if len(tokens) else None


def token_bands(log_ratio: np.ndarray, bounds: Bounds) -> TokenBands | None:
    """Summarise the tokens of one text.

    Args:
        log_ratio: log p_T - log p_R of each of its tokens, in order, nats.
        bounds: Bounds from `band_bounds`.

    Returns:
        None for a text with fewer than `FEWEST_TOKENS` tokens.
    """
    log_ratio = log_ratio[~np.isnan(log_ratio)]
    if len(log_ratio) < FEWEST_TOKENS:
        return None
    counts = np.bincount(np.searchsorted(bounds, log_ratio, side="left"), minlength=len(USUAL))
    percent = np.rint(counts / len(log_ratio) * 100 / STEP) * STEP
    means = [part.mean() for part in np.array_split(log_ratio, len(THIRDS))]
    return TokenBands(tuple(int(share) for share in percent), THIRDS[int(np.argmax(means))])
