"""Token statistics as rows of float16, the form in which a store keeps them: about 250 bytes a position."""

from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Float16

from ltmia.records import Expectation, TokenStatistics

FLOAT16_LIMIT = 65504.0
EXPECTED_WIDTH = 4
"""Columns of one position's expectation."""

_RANKS = frozenset(
    {
        "target_rank",
        "reference_rank",
        "top_reference_rank",
        "reference_top_target_rank",
        "bottom_reference_rank",
    }
)


def row_width(k: int) -> int:
    """Return the number of float16 columns of one position."""
    return sum(k if _is_block(f.type) else 1 for f in fields(TokenStatistics))


def _is_block(annotation: Any) -> bool:
    return "pred k" in str(getattr(annotation, "dim_str", annotation))


def pack_statistics(tokens: TokenStatistics) -> Float16[np.ndarray, "pred width"]:
    """Round statistics to float16 rows: ranks as log(1 + r), and D_t in place of the reference's log-probability.

    D_t is a small difference of large numbers; rounding it after the subtraction keeps three
    digits of it.
    """
    parts = []
    for field in fields(TokenStatistics):
        values = getattr(tokens, field.name)
        if field.name in _RANKS:
            values = np.log1p(values)
        elif field.name == "reference_logp":
            values = tokens.log_ratio
        parts.append(values[:, None] if values.ndim == 1 else values)
    row = np.concatenate(parts, axis=1)
    return np.clip(row, -FLOAT16_LIMIT, FLOAT16_LIMIT).astype(np.float16)


def unpack_statistics(rows: Float16[np.ndarray, "pred width"], k: int) -> TokenStatistics:
    """Turn float16 rows back into statistics, exact to float16."""
    wide = rows.astype(np.float32)
    columns: dict[str, np.ndarray] = {}
    start = 0
    for field in fields(TokenStatistics):
        if _is_block(field.type):
            values = wide[:, start : start + k]
            start += k
        else:
            values = wide[:, start]
            start += 1
        if field.name in _RANKS:
            values = np.rint(np.expm1(values)).astype(np.int32)
        columns[field.name] = values
    columns["reference_logp"] = columns["target_logp"] - columns["reference_logp"]
    return TokenStatistics(**columns)


def pack_expectation(expectation: Expectation) -> Float16[np.ndarray, "pred 4"]:
    """Round to float16 rows: the expected log-ratio, log(1 + n) of the counts, and the spread."""
    counts = np.log1p(np.stack([expectation.token_count, expectation.pair_count], 1))
    return np.column_stack([expectation.log_ratio, counts, expectation.spread]).astype(np.float16)


def unpack_expectation(rows: Float16[np.ndarray, "pred 4"]) -> Expectation:
    """Turn float16 rows back into an expectation, exact to float16."""
    wide = rows.astype(np.float32)
    counts = np.rint(np.expm1(wide[:, 1:3]))
    return Expectation(log_ratio=wide[:, 0], token_count=counts[:, 0], pair_count=counts[:, 1], spread=wide[:, 3])
