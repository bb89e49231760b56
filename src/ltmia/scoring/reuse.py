"""What an audit takes over from an earlier run: kept for the results, and said while it runs."""

from datetime import datetime

from ltmia.evaluation.results import Reused
from ltmia.progress import Report


def note_reused(reused: list[Reused], what: str, *, since: datetime, n_texts: int, of: int, report: Report) -> None:
    """Add a piece of work to what is used again.

    Args:
        reused: What there is so far.
        what: See `Reused`.
        since: When the earlier run began it.
        n_texts: Texts it is of.
        of: Texts there are.
        report: Told the same.
    """
    reused.append(Reused(what=what, n_texts=n_texts, since=since))
    report(f"{what} of {since:%Y-%m-%d %H:%M} UTC used again", n_texts, of)
