"""How exposed the secrets in the texts are, in one line and as the rows of two tables."""

from typing import Any, NamedTuple

import pyarrow as pa

from ltmia.evaluation.drawn_out import SecretValues
from ltmia.evaluation.results import Results
from ltmia.evaluation.wording import unmatched, whole_bits
from ltmia.report.extraction_words import asked

MOST_SHOWN = 20
"""Secrets of the second table; the most exposed ones."""


class Side(NamedTuple):
    """Secrets of one side, as a row of the first table."""

    name: str
    found: SecretValues


def secrets_line(results: Results) -> str | None:
    """Say in one line how exposed the most exposed secret is; None if no spans were given."""
    found = results.secrets
    if found is None:
        return None
    judged, others = found.judged, found.nonmembers
    missing = f" {unmatched(found.unmatched)}." if found.unmatched else ""
    if judged.largest.value is None:
        return f"No secret in the {asked(results)} was ranked: {judged.largest.reason}.{missing}"
    control = f", {whole_bits(others.largest)} in {others.n_ranked} secrets of non-members" if others.n_ranked else ""
    return (
        f"Secrets: {judged.n_ranked} of {judged.n_values} in the {asked(results)} were ranked; their largest exposure "
        f"is {whole_bits(judged.largest)} bits ({whole_bits(judged.largest_by_base)} by the base{control}). "
        f"By chance it would be about {judged.largest_by_chance:.0f}.{missing}"
    )


def secret_sides(results: Results) -> list[Side]:
    """Return the rows of the first table."""
    found = results.secrets
    return [] if found is None else [Side(asked(results), found.judged), Side("non-members", found.nonmembers)]


def most_exposed(spans: pa.Table | None) -> list[dict[str, Any]]:
    """Return the most exposed secrets in texts to judge, as rows of `spans.parquet`."""
    rows = [] if spans is None else spans.to_pylist()
    ranked = [row for row in rows if row["label"] != 0 and row["exposure"] is not None]
    return sorted(ranked, key=lambda row: (-row["exposure"], row["exposure_by_base"] or 0))[:MOST_SHOWN]
