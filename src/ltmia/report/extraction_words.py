"""What can be drawn out of the model, in one line and as the rows of a table."""

from typing import NamedTuple

from ltmia.evaluation.drawn_out import DrawnOut, Extractable, Nearness
from ltmia.evaluation.results import Results
from ltmia.evaluation.wording import percent
from ltmia.extraction.suffixes import NAMED_DRAWS

SHOWN_DRAWS = str(NAMED_DRAWS)
"""Key of the number of draws of the one line."""


class Row(NamedTuple):
    """One row of the table."""

    name: str
    found: DrawnOut


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
    most = found.at_most.get(SHOWN_DRAWS)
    bound = "" if most is None else (
        f" At any temperature, top-k and top-p, at most {percent(most.judged.value)} of the {asked(results)} come out."
    )  # fmt: skip
    return (
        f"Drawn out of the model within {int(SHOWN_DRAWS):,} draws, given the beginning: "
        f"{percent(within.judged.value)} of {found.n_judged} {asked(results)}, "
        f"{percent(within.nonmembers.value)} of {found.n_nonmembers} non-members. "
        f"{asked(results).capitalize()} that come out of the model and not of the base: {within.n_new:,}.{bound}"
    )


def extraction_rows(results: Results) -> list[Row]:
    """Return the rows of the table: by number of draws, then other settings."""
    found = results.extraction
    if found is None or found.greedy is None:
        return []
    rows = [Row(f"{int(draws):,} {'draw' if draws == '1' else 'draws'}", one) for draws, one in found.within.items()]
    rows.append(Row("the most likely token each time", found.greedy))
    drawn = f"{int(SHOWN_DRAWS):,} draws"
    if SHOWN_DRAWS in found.among_top:
        rows.append(Row(f"{drawn}, top-{found.top_k}", found.among_top[SHOWN_DRAWS]))
    if SHOWN_DRAWS in found.at_most:
        rows.append(Row(f"{drawn}, any setting, at most", found.at_most[SHOWN_DRAWS]))
    return rows


class Near(NamedTuple):
    """One row of the table on continuations."""

    name: str
    found: Nearness


def continued_line(results: Results) -> str | None:
    """Say in one line how near the continuations come to the true texts; None if none were asked for."""
    found = results.near_verbatim
    if found is None:
        return None
    if found.judged is None or found.judged_by_base is None:
        return f"No text was continued: {found.reason}."
    others = found.nonmembers
    control = "" if others is None else f", at most {others.longest_run} in {found.n_nonmembers} non-members"
    return (
        f"Continuing the beginnings of the {found.n_judged} {asked(results)} with the highest scores, the model writes "
        f"at most {found.judged.longest_run} tokens in a row as they stand in the text (the base at most "
        f"{found.judged_by_base.longest_run}{control})."
    )


def continued_rows(results: Results) -> list[Near]:
    """Return the rows of the table on continuations."""
    found = results.near_verbatim
    if found is None:
        return []
    judged, others = f"{found.n_judged} {asked(results)}", f"{found.n_nonmembers} non-members"
    rows = (
        (judged, found.judged), (f"{judged}, by the base", found.judged_by_base),
        (others, found.nonmembers), (f"{others}, by the base", found.nonmembers_by_base),
    )  # fmt: skip
    return [Near(name, near) for name, near in rows if near is not None]


def why_not(results: Results) -> str:
    """Say why nothing was measured."""
    if results.extraction is None:
        return "this audit was made by an older version"
    return results.extraction.reason or "the results file does not say why"


def asked(results: Results) -> str:
    """Return what the texts to judge are called."""
    return "members" if results.kind == "audit" else "candidates"
