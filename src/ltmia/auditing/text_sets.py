"""The two sets of texts of an audit: those to judge, and known non-members. Both are scored as one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ltmia.attacks.table import ATTACKS
from ltmia.data.duplicates import OVERLAP_SHARE, compare_sets, kept_rows, ngram_overlap, normalise_text
from ltmia.data.reading import content_ids
from ltmia.errors import ConfigError, DataError
from ltmia.records import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSets:
    """Both sets of texts of an audit: the texts to judge, then the known non-members."""

    texts: Texts
    n_judged: int
    """Number of texts to judge."""
    judged: Literal["members", "candidates"]
    """Whether the texts to judge are known members, or candidates of unknown membership."""
    groups: Int64[np.ndarray, " texts"] | None
    originals: Int64[np.ndarray, " texts"]
    """Row of the first text of the same set that each text equals; its own row if there is none."""
    n_left_out: int | None
    """Number of texts left out because they repeat others or share long passages with members; None if that was not
    asked for."""
    left_out: Texts
    """Those of them that are texts to judge."""

    @property
    def n_nonmembers(self) -> int:
        """Number of known non-members."""
        return len(self.texts) - self.n_judged

    @property
    def sides(self) -> Int64[np.ndarray, " texts"]:
        """1 for each text to judge, 0 for each known non-member."""
        return np.repeat([1, 0], [self.n_judged, self.n_nonmembers])

    @property
    def with_left_out(self) -> Texts:
        """All texts, then the repeats to judge that were left out: these were trained on too."""
        return Texts.concatenate([self.texts, self.left_out])

    @property
    def labels(self) -> list[int | None]:
        """1 for known members, 0 for known non-members, None for candidates."""
        return [self._judged_label] * self.n_judged + [0] * self.n_nonmembers

    @property
    def labels_with_left_out(self) -> list[int | None]:
        """The same of each text of `with_left_out`."""
        return self.labels + [self._judged_label] * len(self.left_out)

    @property
    def _judged_label(self) -> int | None:
        return 1 if self.judged == "members" else None

    @property
    def repeats(self) -> Bool[np.ndarray, " texts"]:
        """Whether a text equals an earlier one of its set."""
        return self.originals != np.arange(len(self.texts))

    @property
    def units(self) -> Int64[np.ndarray, " texts"] | None:
        """Independent unit of each text: its group, or all equal texts together; None if every text is independent."""
        return self.originals if self.groups is None and self.repeats.any() else self.groups

    @property
    def split_units(self) -> tuple[Any, Any]:
        """Units of the texts to judge and of the non-members; None twice if every text is a unit."""
        return (None, None) if self.units is None else self.split(self.units)

    def once(self, scores: Float64[np.ndarray, " texts"]) -> Float64[np.ndarray, " texts"]:
        """Return the scores with NaN for repeats, because copies of a text are not more evidence."""
        return np.where(self.repeats, np.nan, scores)

    def once_in_group(self, scores: Float64[np.ndarray, " texts"]) -> Float64[np.ndarray, " texts"]:
        """Return the scores that groups are judged by: a text that two groups to judge hold counts for both.

        Copies within a group are NaN, and so are all repeats among the non-members, because copies are no more
        evidence.
        """
        kept = self.originals == np.arange(len(self.texts))
        if self.groups is not None:
            pairs = np.column_stack([self.originals, self.groups])[: self.n_judged]
            kept[np.unique(pairs, axis=0, return_index=True)[1]] = True
        return np.where(kept, scores, np.nan)

    def split(self, values: Any) -> tuple[Any, Any]:
        """Split per-text values into those of the texts to judge and those of the non-members."""
        return values[: self.n_judged], values[self.n_judged :]

    @property
    def split_groups(self) -> tuple[Any, Any]:
        """Groups of the texts to judge and of the non-members; None twice if there are no groups."""
        return (None, None) if self.groups is None else self.split(self.groups)


def as_texts(texts: Texts | Sequence[str]) -> Texts:
    """Give plain strings ids made from their content; `Texts` stay as they are."""
    if isinstance(texts, Texts):
        return texts
    ids = content_ids(texts)
    return Texts(texts=tuple(texts), ids=tuple(ids), made_ids=frozenset(ids))


def join_sets(
    judged: Texts, nonmembers: Texts, kind: Literal["members", "candidates"], *, deduplicate: bool = False
) -> TextSets:
    """Join both sets, texts to judge first, and number their groups.

    Args:
        judged: Texts to judge.
        nonmembers: Texts that were surely not trained on.
        kind: What is known of the texts to judge.
        deduplicate: Leave out repeats within each set, and non-members that repeat a member nearly or in long
            passages, because those were in fact trained on.

    Raises:
        DataError: If there are no texts at all, or only one of the two sets holds preference pairs.
    """
    if len(judged) and len(nonmembers) and (judged.rejected is None) != (nonmembers.rejected is None):
        pairs, texts = (judged, nonmembers) if nonmembers.rejected is None else (nonmembers, judged)
        raise DataError(f"{pairs.source} holds preference pairs and {texts.source} does not: give pairs in both")
    if not len(judged) and not len(nonmembers):
        raise DataError(f"neither {kind} nor non-members were given: nothing to audit")
    n_given, left_out = len(judged) + len(nonmembers), judged.take(())
    if deduplicate:
        kept = kept_rows(compare_sets(judged.whole, nonmembers.whole))
        overlaps = ngram_overlap(nonmembers.whole, judged.whole).shares[kept.nonmembers]
        apart = kept.nonmembers[~(overlaps > OVERLAP_SHARE)]
        left_out = judged.take(np.setdiff1d(np.arange(len(judged)), kept.members))
        judged, nonmembers = judged.take(kept.members), nonmembers.take(apart)
    texts = Texts.concatenate([judged, nonmembers])
    groups = None if texts.groups is None else np.unique(texts.groups, return_inverse=True)[1]
    return TextSets(
        texts=texts,
        n_judged=len(judged),
        judged=kind,
        groups=groups,
        originals=np.concatenate([_originals(judged), len(judged) + _originals(nonmembers)]),
        n_left_out=n_given - len(texts) if deduplicate else None,
        left_out=left_out,
    )


def refuse_other_kind(attacks: Sequence[str], sets: TextSets, *, must_read: bool) -> None:
    """Refuse attacks on preference pairs if the texts are none, and to read weights for pairs.

    Raises:
        ConfigError: If there is one; the message names it.
    """
    if sets.texts.rejected is not None and must_read:
        raise ConfigError(
            "the weights are read for single texts, not for preference pairs: leave out `observer` and `thorough`"
        )
    if sets.texts.rejected is None and (refused := [name for name in attacks if ATTACKS[name].pairs]):
        raise ConfigError(
            f"{', '.join(refused)}: needs preference pairs, files with the columns `chosen` and `rejected` (and "
            "`prompt`); leave it out"
        )


def _originals(texts: Texts) -> Int64[np.ndarray, " texts"]:
    """Return for each text the row of the first text that equals it.

    Texts are equal if they differ only in case and white space, and are scored from the same place on; of preference
    pairs, both texts must be equal. A text without a word equals no other.
    """
    first: dict[tuple[str, int], int] = {}
    rows = np.arange(len(texts))
    for row, (text, start) in enumerate(zip(texts.whole, texts.starts or (0,) * len(texts), strict=True)):
        if key := normalise_text(text):
            rows[row] = first.setdefault((key, start), row)
    return rows
