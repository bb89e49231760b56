"""The share of texts that come out of target and base, of the texts to judge and of the non-members."""

import numpy as np
from jaxtyping import Bool, Int64

from ltmia.evaluation.results import Extractable, Extraction
from ltmia.evaluation.shares import difference_of, share_of
from ltmia.extraction.suffixes import DRAWS, SHORTEST_SUFFIX, Suffixes, extractable

Hits = Bool[np.ndarray, " texts"]


def measure_extraction(
    suffixes: Suffixes,
    judged: Hits,
    counted: Hits,
    units: Int64[np.ndarray, " texts"] | None,
) -> Extraction:
    """Measure how many texts can be drawn out.

    Args:
        suffixes: Of all texts.
        judged: Which texts are to be judged; the others are non-members.
        counted: Which texts count; a repeat of another does not.
        units: Independent unit of each text, such as its group; every text is one when None.
    """
    taken = suffixes.measured & counted
    parts = [np.flatnonzero(taken & side) for side in (judged, ~judged)]
    n_judged, n_nonmembers = map(len, parts)
    counts = Extraction(
        n_judged=n_judged,
        n_nonmembers=n_nonmembers,
        n_without_suffix=int((judged & counted & ~suffixes.measured).sum()),
    )
    if not n_judged:
        return counts.model_copy(update={"reason": f"no text has a suffix of {SHORTEST_SUFFIX} tokens"})

    def shares(of_target: Hits, of_reference: Hits) -> Extractable:
        return _shares(of_target, of_reference, parts, units)

    within = {
        str(draws): shares(extractable(suffixes.target_logp, draws), extractable(suffixes.reference_logp, draws))
        for draws in DRAWS
    }
    return counts.model_copy(
        update={
            "suffix_tokens": float(np.median(suffixes.n_tokens[parts[0]])),
            "within": within,
            "greedy": shares(suffixes.target_greedy, suffixes.reference_greedy),
        }
    )


def _shares(
    of_target: Hits, of_reference: Hits, parts: list[Int64[np.ndarray, " _"]], units: Int64[np.ndarray, " texts"] | None
) -> Extractable:
    measured = [
        share_of(hits[rows], None if units is None else units[rows])
        for hits in (of_target, of_reference) for rows in parts
    ]  # fmt: skip
    return Extractable(
        judged=measured[0],
        nonmembers=measured[1],
        judged_by_base=measured[2],
        nonmembers_by_base=measured[3],
        difference=difference_of(measured[0], measured[1]),
        n_new=int((of_target & ~of_reference)[parts[0]].sum()),
    )
