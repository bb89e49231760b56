"""Notes on work that an audit reuses from an earlier run, for the results and the progress."""

from datetime import datetime

from ltmia.evaluation.results import Reused
from ltmia.progress import Report


def note_reused(reused: list[Reused], what: str, *, since: datetime, n_texts: int, of: int, report: Report) -> None:
    """Note that a piece of work is reused.

    Args:
        reused: Notes so far; one is added.
        what: See `Reused`.
        since: When the earlier run began it.
        n_texts: Number of texts it covers.
        of: Number of texts in all.
        report: Called with the same.
    """
    reused.append(Reused(what=what, n_texts=n_texts, since=since))
    report(f"{what} of {since:%Y-%m-%d %H:%M} UTC used again", n_texts, of)
