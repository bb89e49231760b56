"""The share of texts that come out of target and base, of the texts to judge and of the non-members."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ltmia.evaluation.drawn_out import DrawnOut, DrawnOutOfBoth, Extractable, Extraction
from ltmia.evaluation.section import Measure
from ltmia.evaluation.shares import difference_of, share_of
from ltmia.extraction.suffixes import DRAWS, SHORTEST_SUFFIX, Suffixes, extractable

Hits = Bool[np.ndarray, " texts"]
Logp = Float64[np.ndarray, " texts"]
Found = TypeVar("Found", bound=DrawnOut)


def measure_extraction(
    suffixes: Suffixes,
    judged: Hits,
    originals: Int64[np.ndarray, " texts"],
    units: Int64[np.ndarray, " texts"] | None,
    *,
    top_k: int,
) -> Extraction:
    """Measure how many texts can be drawn out.

    Copies of a text may differ in case and white space, so one copy may come out and another not. They count as one
    text, which comes out if any of its copies does.

    Args:
        suffixes: Of all texts.
        judged: Which texts are to be judged; the others are non-members.
        originals: Row of the first copy of each text; its own row if there is none before it.
        units: Independent unit of each text, such as its group; None: every text is independent.
        top_k: Number of most likely tokens that `target_top_logp` is about.
    """
    taken = _of_any_copy(suffixes.measured, originals)
    shares = _Shares(
        judged=np.flatnonzero(taken & judged),
        nonmembers=np.flatnonzero(taken & ~judged),
        originals=originals,
        units=units,
    )
    first = originals == np.arange(len(originals))
    counted = partial(
        Extraction,
        n_judged=len(shares.judged),
        n_nonmembers=len(shares.nonmembers),
        n_without_suffix=int((judged & first & ~taken).sum()),
    )
    if not len(shares.judged):
        return counted(reason=f"no text has a suffix of {SHORTEST_SUFFIX} tokens")
    return counted(
        suffix_tokens=float(np.median(suffixes.n_tokens[suffixes.measured & judged])),
        within=_by_draws(shares.compared, suffixes.target_logp, suffixes.reference_logp),
        greedy=shares.compared(suffixes.target_greedy, suffixes.reference_greedy),
        top_k=top_k,
        among_top=_by_draws(shares.of_target, suffixes.target_top_logp),
        at_most=_by_draws(shares.of_both, suffixes.target_bound, suffixes.reference_bound),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Counts texts that come out; copies count once."""

    judged: Int64[np.ndarray, " _"]
    """Rows of the texts to judge that have a suffix."""
    nonmembers: Int64[np.ndarray, " _"]
    originals: Int64[np.ndarray, " texts"]
    units: Int64[np.ndarray, " texts"] | None

    def of_target(self, hits: Hits) -> DrawnOut:
        return DrawnOut(**self._sides(hits))

    def of_both(self, of_target: Hits, of_reference: Hits) -> DrawnOutOfBoth:
        by_base = {f"{side}_by_base": share for side, share in self._sides(of_reference).items()}
        return DrawnOutOfBoth(**self._sides(of_target), **by_base)

    def compared(self, of_target: Hits, of_reference: Hits) -> Extractable:
        both = self.of_both(of_target, of_reference)
        new = _of_any_copy(of_target & ~of_reference, self.originals)
        return Extractable(
            **dict(both),
            difference=difference_of(both.judged, both.nonmembers),
            n_new=int(new[self.judged].sum()),
        )

    def _sides(self, hits: Hits) -> dict[str, Measure]:
        found = _of_any_copy(hits, self.originals)
        return {
            name: share_of(found[rows], None if self.units is None else self.units[rows])
            for name, rows in (("judged", self.judged), ("nonmembers", self.nonmembers))
        }


def _by_draws(count: Callable[..., Found], *logps: Logp) -> dict[str, Found]:
    """Count the texts that come out within each number of draws."""
    return {str(draws): count(*(extractable(logp, draws) for logp in logps)) for draws in DRAWS}


def _of_any_copy(hits: Hits, originals: Int64[np.ndarray, " texts"]) -> Hits:
    """Move each hit to the first copy of its text, so that copies count once."""
    found = np.zeros(len(hits), np.bool_)
    found[originals[hits]] = True
    return found
