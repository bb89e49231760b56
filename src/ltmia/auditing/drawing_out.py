"""Finds which texts of an audit can be drawn out of the models, from the store that the scores were made from."""

from typing import Any

import pyarrow as pa

from ltmia.auditing.text_sets import TextSets
from ltmia.evaluation.drawn_out import Extraction
from ltmia.extraction.measure import measure_extraction
from ltmia.extraction.suffixes import Suffixes, draws_needed, read_suffixes
from ltmia.scoring.stored_scores import ScoredTexts, StoredTexts

AT_ONCE = 256
"""Texts whose statistics are in memory at a time."""
SUFFIX_TYPES = {
    "suffix_tokens": pa.int64(),
    "extractable_within": pa.int64(),
    "extractable_within_by_base": pa.int64(),
    "greedy_match": pa.bool_(),
}
"""Columns of `records.parquet` about each text's suffix."""


def suffixes_of(scored: ScoredTexts, sets: TextSets) -> Suffixes | None:
    """Read each text's suffix from the store; return None if a cluster kept only scores."""
    if not isinstance(scored, StoredTexts):
        return None
    prompted = [start > 0 for start in sets.texts.starts or (0,) * len(sets.texts)]
    return Suffixes.concatenate([
        read_suffixes(scored.store.statistics(rows), [prompted[row] for row in rows])
        for rows in (range(len(prompted))[first : first + AT_ONCE] for first in range(0, len(prompted), AT_ONCE))
    ])  # fmt: skip


def extraction_of(suffixes: Suffixes | None, scored: ScoredTexts, sets: TextSets) -> Extraction:
    """Measure how many texts can be drawn out."""
    if suffixes is None or not isinstance(scored, StoredTexts):
        return Extraction(reason="the cluster kept scores only, and no log-probability of any token")
    return measure_extraction(suffixes, sets.sides == 1, sets.originals, sets.units, top_k=scored.store.k)


def suffix_columns(suffixes: Suffixes | None, n_texts: int) -> dict[str, Any]:
    """Lay out the columns of `records.parquet` about extraction; draws are rounded up to one of `DRAWS`."""
    if suffixes is None:
        return {name: pa.nulls(n_texts, kind) for name, kind in SUFFIX_TYPES.items()}
    values = (
        suffixes.n_tokens, draws_needed(suffixes.target_logp), draws_needed(suffixes.reference_logp),
        suffixes.target_greedy,
    )  # fmt: skip
    known = (suffixes.measured, values[1] > 0, values[2] > 0, suffixes.measured)
    return {
        name: pa.array(column, kind, mask=~there)
        for (name, kind), column, there in zip(SUFFIX_TYPES.items(), values, known, strict=True)
    }
