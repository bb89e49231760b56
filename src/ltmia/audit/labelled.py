"""Members and non-members as one run of texts: scored together, told apart again by place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from ltmia.data.duplicates import compare_sets, kept_rows, ngram_overlap
from ltmia.data.reading import content_ids
from ltmia.errors import DataError
from ltmia.evaluation.validity import OVERLAP_SHARE
from ltmia.records import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTexts:
    """Members first, then non-members."""

    texts: Texts
    n_members: int
    groups: Int64[np.ndarray, " texts"] | None
    n_left_out: int | None = None
    """Texts left out because they repeat others, or stand on both sides in long passages; None if none was to be."""

    @property
    def labels(self) -> Int64[np.ndarray, " texts"]:
        """1 for members, 0 for non-members."""
        return np.repeat([1, 0], [self.n_members, len(self.texts) - self.n_members])

    def by_label(self, values: Any) -> tuple[Any, Any]:
        """Cut per-text values into those of members and those of non-members."""
        return values[: self.n_members], values[self.n_members :]

    @property
    def groups_by_label(self) -> dict[str, Any]:
        """Groups of both kinds, as the metrics take them."""
        members, nonmembers = (None, None) if self.groups is None else self.by_label(self.groups)
        return {"member_groups": members, "nonmember_groups": nonmembers}


def as_texts(texts: Texts | Sequence[str]) -> Texts:
    """Take plain strings as texts with ids made from their content."""
    if isinstance(texts, Texts):
        return texts
    return Texts(texts=tuple(texts), ids=tuple(content_ids(texts)))


def label_texts(members: Texts, nonmembers: Texts, deduplicate: bool) -> LabelledTexts:
    """Join both sets, members first, and number their groups; repeats are left out on request.

    Left out are repeats within each set, and non-members that repeat a member, nearly or in long passages: those were
    in truth trained on.

    Raises:
        DataError: If there are no texts at all.
    """
    if not len(members) and not len(nonmembers):
        raise DataError("neither members nor non-members were given: nothing to audit")
    n_given = len(members) + len(nonmembers)
    if deduplicate:
        kept = kept_rows(compare_sets(members.texts, nonmembers.texts))
        overlaps = ngram_overlap(nonmembers.texts, members.texts).shares[kept.nonmembers]
        apart = kept.nonmembers[~(overlaps > OVERLAP_SHARE)]
        members, nonmembers = members.take(kept.members), nonmembers.take(apart)
    texts = Texts.concatenate([members, nonmembers])
    groups = None if texts.groups is None else np.unique(texts.groups, return_inverse=True)[1]
    return LabelledTexts(
        texts=texts,
        n_members=len(members),
        groups=groups,
        n_left_out=n_given - len(texts) if deduplicate else None,
    )
