"""The share of texts that come out of target and base, of the texts to judge and of the non-members."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Int64

from ltmia.evaluation.results import Extractable, Extraction
from ltmia.evaluation.shares import difference_of, share_of
from ltmia.extraction.suffixes import DRAWS, SHORTEST_SUFFIX, Suffixes, extractable

Hits = Bool[np.ndarray, " texts"]


def measure_extraction(
    suffixes: Suffixes,
    judged: Hits,
    originals: Int64[np.ndarray, " texts"],
    units: Int64[np.ndarray, " texts"] | None,
) -> Extraction:
    """Measure how many texts can be drawn out.

    Copies of a text may differ in case and white space, so one copy may come out and another not. They count as one
    text, which comes out if any of its copies does.

    Args:
        suffixes: Of all texts.
        judged: Which texts are to be judged; the others are non-members.
        originals: Row of the first copy of each text; its own row if there is none before it.
        units: Independent unit of each text, such as its group; None: every text is independent.
    """
    taken = _of_any_copy(suffixes.measured, originals)
    parts = [np.flatnonzero(taken & side) for side in (judged, ~judged)]
    n_judged, n_nonmembers = map(len, parts)
    first = originals == np.arange(len(originals))
    counted = partial(
        Extraction,
        n_judged=n_judged,
        n_nonmembers=n_nonmembers,
        n_without_suffix=int((judged & first & ~taken).sum()),
    )
    if not n_judged:
        return counted(reason=f"no text has a suffix of {SHORTEST_SUFFIX} tokens")

    def shares(of_target: Hits, of_reference: Hits) -> Extractable:
        found = (of_target, of_reference, of_target & ~of_reference)
        return _shares([_of_any_copy(hits, originals) for hits in found], parts, units)

    return counted(
        suffix_tokens=float(np.median(suffixes.n_tokens[suffixes.measured & judged])),
        within={
            str(draws): shares(extractable(suffixes.target_logp, draws), extractable(suffixes.reference_logp, draws))
            for draws in DRAWS
        },
        greedy=shares(suffixes.target_greedy, suffixes.reference_greedy),
    )


def _of_any_copy(hits: Hits, originals: Int64[np.ndarray, " texts"]) -> Hits:
    """Move each hit to the first copy of its text, so that copies count once."""
    found = np.zeros(len(hits), np.bool_)
    found[originals[hits]] = True
    return found


def _shares(
    hits: Sequence[Hits], parts: Sequence[Int64[np.ndarray, " _"]], units: Int64[np.ndarray, " texts"] | None
) -> Extractable:
    of_target, of_reference, new = hits
    measured = [
        share_of(found[rows], None if units is None else units[rows])
        for found in (of_target, of_reference) for rows in parts
    ]  # fmt: skip
    return Extractable(
        judged=measured[0],
        nonmembers=measured[1],
        judged_by_base=measured[2],
        nonmembers_by_base=measured[3],
        difference=difference_of(measured[0], measured[1]),
        n_new=int(new[parts[0]].sum()),
    )
