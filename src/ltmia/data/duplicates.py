"""Repeated texts within a set and across members and non-members.

A word is a run of characters between white space, case folded. In scripts without spaces there are few "words", so only
equal texts are found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from datasketch import MinHash, MinHashLSH
from jaxtyping import Float64, Int64

from ltmia.errors import ConfigError

SHINGLE_WORDS = 5
OVERLAP_WORDS = 8
OVERLAP_SHARE = 0.3
"""A text overlaps with the other set if more than this share of its word 8-grams occurs there."""
N_PERMUTATIONS = 128
MAX_MISS = 1e-3
"""Largest probability that a pair exactly at the threshold is not compared."""
HASH_CHUNK = 4096
"""Shingles hashed at a time, so that a huge text does not need a huge table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A text that repeats another."""

    row: int
    of: int
    """Row of the text that is repeated."""
    similarity: float
    """Jaccard similarity of the two sets of word 5-grams; 1 for equal texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Texts of one set that repeat an earlier text of it, or a text of another set."""

    n_texts: int
    threshold: float
    exact: tuple[Repeat, ...]
    """Texts that are equal except for case and white space."""
    near: tuple[Repeat, ...]
    """Texts that are not equal, with a similarity at or over the threshold."""

    @property
    def rows(self) -> Int64[np.ndarray, " repeats"]:
        """Rows that repeat another text, in rising order."""
        return np.array(sorted(r.row for r in (*self.exact, *self.near)), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDuplicates:
    """Repeats within the members, within the non-members, and non-members that repeat members."""

    members: Duplicates
    nonmembers: Duplicates
    across: Duplicates
    """Repeats across the sets: `row` is the row of a non-member, `of` that of a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """Rows that remain after repeats are removed, in rising order."""

    members: Int64[np.ndarray, " kept_members"]
    nonmembers: Int64[np.ndarray, " kept_nonmembers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramOverlap:
    """Overlap of each text with another set, by word n-grams."""

    n_words: int
    shares: Float64[np.ndarray, " texts"]
    """Share of a text's n-grams that occur in the other set; NaN for a text with fewer than n words."""

    @property
    def n_measured(self) -> int:
        """Number of texts long enough to have an n-gram."""
        return int(np.isfinite(self.shares).sum())

    @property
    def mean(self) -> float:
        """Mean share over the measured texts; NaN when there is none."""
        return float(np.nanmean(self.shares)) if self.n_measured else float("nan")

    def n_over(self, share: float) -> int:
        """Return how many texts have more than this share of their n-grams in the other set."""
        return int((self.shares > share).sum())


def normalise_text(text: str) -> str:
    """Return the text case folded, with single spaces between words."""
    return " ".join(text.casefold().split())


def exact_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Return, for each row that repeats an earlier text, the first row with that text.

    Case and white space are ignored. Texts without a word repeat nothing.
    """
    first: dict[str, int] = {}
    repeats = {}
    for row, text in enumerate(texts):
        key = normalise_text(text)
        if key and first.setdefault(key, row) != row:
            repeats[row] = first[key]
    return repeats


def find_duplicates(texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0) -> Duplicates:
    """Find the texts of one set that repeat an earlier text of the set.

    A text is compared with the texts kept so far, so no two similar texts are kept. Candidates come from MinHash LSH
    and are then compared exactly: texts that are not similar are never found, and similar ones are missed with a
    probability under `MAX_MISS`.

    Args:
        texts: The set, in order; the first of each kind is kept.
        threshold: Smallest Jaccard similarity of word 5-grams that counts as near.
        seed: Seed of the hashes.

    Raises:
        ConfigError: The threshold is not in (0, 1].
    """
    index = _Index(threshold, seed)
    exact = exact_duplicates(texts)
    near = []
    for row, words in _distinct(texts, exact):
        sketch = index.sketch(words)
        found = index.first_similar(words, sketch)
        if found is None:
            index.add(row, words, sketch)
        else:
            near.append(Repeat(row=row, of=found[0], similarity=found[1]))
    return Duplicates(n_texts=len(texts), threshold=threshold, exact=_as_repeats(exact), near=tuple(near))


def find_shared(texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.8, seed: int = 0) -> Duplicates:
    """Find the texts that repeat a text of another set; `of` is the first such row of `others`.

    Args and errors are those of `find_duplicates`.
    """
    index = _Index(threshold, seed)
    first_other: dict[str, int] = {}
    for row, words in _distinct(others, exact_duplicates(others)):
        first_other[" ".join(words)] = row
        index.add(row, words, index.sketch(words))
    exact, near = {}, []
    for row, words in _distinct(texts, {}):
        if (equal := first_other.get(" ".join(words))) is not None:
            exact[row] = equal
        elif (found := index.first_similar(words, index.sketch(words))) is not None:
            near.append(Repeat(row=row, of=found[0], similarity=found[1]))
    return Duplicates(n_texts=len(texts), threshold=threshold, exact=_as_repeats(exact), near=tuple(near))


def compare_sets(
    members: Sequence[str], nonmembers: Sequence[str], *, threshold: float = 0.8, seed: int = 0
) -> SetDuplicates:
    """Find repeats within members, within non-members, and non-members that repeat a member."""
    return SetDuplicates(
        members=find_duplicates(members, threshold=threshold, seed=seed),
        nonmembers=find_duplicates(nonmembers, threshold=threshold, seed=seed),
        across=find_shared(nonmembers, members, threshold=threshold, seed=seed),
    )


def kept_rows(duplicates: SetDuplicates) -> KeptRows:
    """Return the rows to keep: the first of equal or similar texts, members before non-members.

    A non-member that repeats a member was in fact trained on, so the non-member is left out.
    """
    nonmembers = np.union1d(duplicates.nonmembers.rows, duplicates.across.rows)
    return KeptRows(
        members=np.setdiff1d(np.arange(duplicates.members.n_texts), duplicates.members.rows),
        nonmembers=np.setdiff1d(np.arange(duplicates.nonmembers.n_texts), nonmembers),
    )


def ngram_overlap(texts: Sequence[str], others: Sequence[str], *, n_words: int = OVERLAP_WORDS) -> NgramOverlap:
    """Measure the share of each text's distinct word n-grams that occur anywhere in another set."""
    seen = {gram for text in others for gram in _ngrams(normalise_text(text).split(), n_words)}
    shares = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        grams = set(_ngrams(normalise_text(text).split(), n_words))
        if grams:
            shares[row] = len(grams & seen) / len(grams)
    return NgramOverlap(n_words=n_words, shares=shares)


class _Index:
    """Texts kept so far; later texts are compared with them."""

    def __init__(self, threshold: float, seed: int) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"near-duplicate threshold is {threshold}: expected over 0, up to 1.")
        self._threshold = threshold
        self._lsh = MinHashLSH(num_perm=N_PERMUTATIONS, params=_bands(threshold))
        self._empty = MinHash(num_perm=N_PERMUTATIONS, seed=seed + 1)
        self._words: dict[int, list[str]] = {}

    def sketch(self, words: list[str]) -> MinHash:
        sketch = self._empty.copy()
        grams = (gram.encode("utf-8", "surrogatepass") for gram in _shingles(words))
        while chunk := list(islice(grams, HASH_CHUNK)):
            sketch.update_batch(chunk)
        return sketch

    def add(self, row: int, words: list[str], sketch: MinHash) -> None:
        self._lsh.insert(row, sketch, check_duplication=False)
        self._words[row] = words

    def first_similar(self, words: list[str], sketch: MinHash) -> tuple[int, float] | None:
        """Return the first row at or over the threshold, with its similarity."""
        candidates = sorted(self._lsh.query(sketch))
        grams = set(_shingles(words)) if candidates else set()
        for row in candidates:
            others = set(_shingles(self._words[row]))
            shared = len(grams & others)
            similarity = shared / (len(grams) + len(others) - shared)
            if similarity >= self._threshold:
                return row, similarity
        return None


def _bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows a band), as selective as `MAX_MISS` allows at the threshold.

    A pair of similarity s agrees in some band of r rows out of b with probability 1 - (1 - s^r)^b.
    """
    for n_rows in range(N_PERMUTATIONS // 2, 1, -1):
        n_bands = N_PERMUTATIONS // n_rows
        if (1 - threshold**n_rows) ** n_bands <= MAX_MISS:
            return n_bands, n_rows
    return N_PERMUTATIONS, 1


def _distinct(texts: Sequence[str], repeats: dict[int, int]) -> Iterator[tuple[int, list[str]]]:
    for row, text in enumerate(texts):
        words = [] if row in repeats else normalise_text(text).split()
        if words:
            yield row, words


def _shingles(words: list[str]) -> Iterator[str]:
    """Yield the word 5-grams; a shorter text is one shingle."""
    return _ngrams(words, min(SHINGLE_WORDS, len(words)))


def _ngrams(words: list[str], n: int) -> Iterator[str]:
    return (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def _as_repeats(rows: dict[int, int]) -> tuple[Repeat, ...]:
    return tuple(Repeat(row=row, of=of, similarity=1.0) for row, of in rows.items())
