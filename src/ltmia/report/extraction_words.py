"""What can be drawn out of the model, in one line and as the rows of a table."""

from typing import NamedTuple

from ltmia.evaluation.results import Extractable, Results
from ltmia.evaluation.wording import percent
from ltmia.extraction.suffixes import NAMED_DRAWS

SHOWN_DRAWS = str(NAMED_DRAWS)
"""Key of the number of draws of the one line."""


class Row(NamedTuple):
    """One row of the table."""

    name: str
    found: Extractable


def shown(results: Results) -> Extractable | None:
    """Return the shares that the one-line summary shows; None if nothing was measured."""
    return None if results.extraction is None else results.extraction.within.get(SHOWN_DRAWS)


def extraction_line(results: Results) -> str | None:
    """Say in one line which share of the texts comes out; None if the file is older than this figure."""
    found = results.extraction
    if found is None:
        return None
    within = shown(results)
    if within is None:
        return f"Nothing was measured of what can be drawn out of the model: {why_not(results)}."
    return (
        f"Drawn out of the model within {int(SHOWN_DRAWS):,} draws, given the beginning: "
        f"{percent(within.judged.value)} of {found.n_judged} {asked(results)}, "
        f"{percent(within.nonmembers.value)} of {found.n_nonmembers} non-members. "
        f"{_count(within.n_new)} of these {asked(results)} cannot be drawn out of the base."
    )


def extraction_rows(results: Results) -> list[Row]:
    """Return the rows of the table: by number of draws, then greedy."""
    found = results.extraction
    if found is None or found.greedy is None:
        return []
    rows = [Row(f"{int(draws):,} {'draw' if draws == '1' else 'draws'}", one) for draws, one in found.within.items()]
    return [*rows, Row("the most likely token each time", found.greedy)]


def why_not(results: Results) -> str:
    """Say why nothing was measured."""
    if results.extraction is None:
        return "this audit was made by an older version"
    return results.extraction.reason or "the results file does not say why"


def asked(results: Results) -> str:
    """Return what the texts to judge are called."""
    return "members" if results.kind == "audit" else "candidates"


def _count(n: int) -> str:
    return f"{n:,}" if n else "None"
