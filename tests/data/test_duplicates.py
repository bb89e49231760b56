"""Duplicates: every pair against the definition, and what is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.data.duplicates import (
    MAX_MISS,
    N_PERMUTATIONS,
    _bands,
    compare_sets,
    exact_duplicates,
    find_duplicates,
    find_shared,
    kept_rows,
    ngram_overlap,
)
from ltmia.errors import ConfigError


def naive_shingles(text, n=5):
    words = text.casefold().split()
    n = min(n, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


def naive_jaccard(a, b):
    a, b = naive_shingles(a), naive_shingles(b)
    return len(a & b) / len(a | b) if a and b else 0.0


def naive_repeats(texts, threshold):
    """Row -> the first kept row that it repeats."""
    kept, repeats = [], {}
    for row, text in enumerate(texts):
        equal = [k for k in kept if text.casefold().split() == texts[k].casefold().split() != []]
        similar = [k for k in kept if naive_jaccard(text, texts[k]) >= threshold]
        if equal or similar:
            repeats[row] = (equal or similar)[0]
        else:
            kept.append(row)
    return repeats


def planted_texts(seed, n_texts=120, n_words=60):
    """Random texts, every third one a copy of an earlier one with some words changed."""
    rng = np.random.default_rng(seed)
    texts = []
    for row in range(n_texts):
        if row % 3 == 2:
            words = texts[rng.integers(row)].split()
            for _ in range(rng.integers(0, 5)):
                words[rng.integers(len(words))] = f"new{rng.integers(10**6)}"
        else:
            words = [f"w{i}" for i in rng.integers(0, 500, n_words)]
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_duplicates_equal_the_pairwise_oracle(threshold, seed):
    texts = planted_texts(seed)
    found = find_duplicates(texts, threshold=threshold, seed=seed)
    expected = naive_repeats(texts, threshold)
    assert expected
    # An exact repeat names the first equal row even where that row itself is near an earlier one.
    assert {r.row for r in (*found.exact, *found.near)} == set(expected)
    for repeat in found.near:
        assert repeat.of == expected[repeat.row]
        assert repeat.similarity == naive_jaccard(texts[repeat.row], texts[repeat.of]) >= threshold
    assert found.rows.tolist() == sorted(expected)


def test_shared_texts_equal_the_pairwise_oracle():
    texts = planted_texts(3)
    ours, others = texts[::2], texts[1::2]
    found = find_shared(ours, others, threshold=0.7)
    similarity = np.array([[naive_jaccard(a, b) for b in others] for a in ours])
    hit = similarity >= 0.7
    assert hit.any()
    assert found.rows.tolist() == np.flatnonzero(hit.any(axis=1)).tolist()
    assert all(r.of == hit[r.row].argmax() for r in found.near)


def test_exact_means_equal_but_for_case_and_white_space():
    texts = ["A b\tc", "", "a  B C\n", "a b d", " ", "A B C", "STRASSE", "straße"]
    assert exact_duplicates(texts) == {2: 0, 5: 0, 7: 6}
    found = find_duplicates(texts)
    assert [(r.row, r.of, r.similarity) for r in found.exact] == [(2, 0, 1), (5, 0, 1), (7, 6, 1)]
    assert found.near == ()


def test_reordered_shingles_are_near_not_exact():
    circle = "a b c d e a b c d e a b c d e"
    found = find_duplicates([circle, f"{circle} a"])
    assert found.exact == ()
    assert [(r.row, r.of, r.similarity) for r in found.near] == [(1, 0, 1.0)]


def test_texts_without_words_repeat_nothing():
    found = compare_sets(["", " ", "\n"], ["", "\t"])
    assert found.members.rows.size == found.nonmembers.rows.size == found.across.rows.size == 0
    assert kept_rows(found).members.tolist() == [0, 1, 2]
    assert find_duplicates([]).n_texts == 0


def test_kept_rows_leave_the_first_and_drop_nonmembers_that_repeat_members():
    members = ["one two three", "four five six", "One two  three"]
    nonmembers = ["seven", "FOUR five six", "eight", "seven", "ten"]
    kept = kept_rows(compare_sets(members, nonmembers))
    assert kept.members.tolist() == [0, 1]
    assert kept.nonmembers.tolist() == [0, 2, 4]


def test_hostile_texts():
    long = " ".join(f"w{i}" for i in range(20_000))
    texts = ["\ud800 half", "a\0b", "x" * 100_000, long, "\ud800 half", long + " end", "a\0b c"]
    found = find_duplicates(texts)
    assert [r.row for r in found.exact] == [4]
    assert [r.row for r in found.near] == [5]
    assert ngram_overlap(texts, texts).n_measured == 2


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, float("nan")])
def test_wrong_threshold(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        find_duplicates(["a"], threshold=threshold)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_fit_the_sketch_and_keep_misses_rare(threshold):
    n_bands, n_rows = _bands(threshold)
    assert n_bands >= 2
    assert n_bands * n_rows <= N_PERMUTATIONS
    assert (1 - threshold**n_rows) ** n_bands <= MAX_MISS


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=14).map(" ".join)


@given(texts=st.lists(WORDS, max_size=12), threshold=st.sampled_from([0.4, 0.7, 1.0]))
@settings(deadline=None, max_examples=60)
def test_what_is_found_is_similar_and_the_result_is_repeatable(texts, threshold):
    found = find_duplicates(texts, threshold=threshold)
    assert found == find_duplicates(texts, threshold=threshold)
    for repeat in (*found.exact, *found.near):
        assert repeat.of < repeat.row
        assert naive_jaccard(texts[repeat.row], texts[repeat.of]) >= threshold
    assert set(found.rows) >= set(exact_duplicates(texts))


@given(texts=st.lists(WORDS, max_size=6), others=st.lists(WORDS, max_size=6), n=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_ngram_overlap_equals_its_definition(texts, others, n):
    def grams(text):
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    seen = set().union(*map(grams, others))
    expected = [len(grams(t) & seen) / len(grams(t)) if grams(t) else np.nan for t in texts]
    overlap = ngram_overlap(texts, others, n_words=n)
    np.testing.assert_array_equal(overlap.shares, np.array(expected, dtype=float))
    assert overlap.n_over(0.5) == sum(share > 0.5 for share in expected)
    assert overlap.n_measured == sum(bool(grams(t)) for t in texts)
    if overlap.n_measured:
        assert overlap.mean == pytest.approx(np.nanmean(expected))
    else:
        assert np.isnan(overlap.mean)
