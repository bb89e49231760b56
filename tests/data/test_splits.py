"""Splits: whole groups, the sizes asked for, the same for the same seed; and the embedded texts."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.data.duplicates import compare_sets
from ltmia.data.embedded import demo_texts
from ltmia.data.splits import draw_membership, split_by_group
from ltmia.errors import ConfigError, DataError
from ltmia.records import Texts

GROUPS = st.lists(st.integers(0, 12).map(str), max_size=80)
FRACTIONS = st.sampled_from([[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [0.9, 0.0, 0.1], [1 / 3] * 3])


def corpus(sizes, prefix="text"):
    names = [f"doc{g}" for g, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(0).permutation(len(names))
    rows = [f"{prefix} number {i}" for i in range(len(names))]
    ids = tuple(map(str, range(len(names))))
    return Texts(texts=tuple(rows), ids=ids, groups=tuple(names[i] for i in order))


@given(groups=GROUPS, fractions=FRACTIONS, seed=st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_split_covers_all_rows_keeps_groups_whole_and_comes_near_the_sizes(groups, fractions, seed):
    parts = split_by_group(groups, fractions, seed)
    assert len(parts) == len(fractions)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    names = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, names)) == len(set(groups))
    largest = max((groups.count(g) for g in groups), default=0)
    for part, fraction in zip(parts, fractions, strict=True):
        assert len(part) - fraction * len(groups) < largest + 1
        assert part.tolist() == sorted(part)
        if fraction == 0:
            assert len(part) == 0
    again = split_by_group(groups, fractions, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_split_of_single_rows_is_exact_and_random():
    groups = [str(i) for i in range(1000)]
    first, second = split_by_group(groups, [0.3, 0.7], 0), split_by_group(groups, [0.3, 0.7], 1)
    assert [len(p) for p in first] == [300, 700]
    assert set(first[0]) != set(second[0])
    chance = np.mean([0 in split_by_group(groups, [0.3, 0.7], s)[0] for s in range(200)])
    assert 0.2 < chance < 0.4


@pytest.mark.parametrize("fractions", [[], [0.5], [0.6, 0.6], [-0.5, 1.5], [float("nan"), 1.0]])
def test_wrong_fractions(fractions):
    with pytest.raises(ConfigError, match="fractions"):
        split_by_group(["a"], fractions, 0)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=6, max_size=30),
    wanted=st.tuples(*[st.integers(0, 12)] * 3),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=100)
def test_drawn_sides_share_no_group_and_have_the_numbers_asked_for(sizes, wanted, seed):
    texts = corpus(sizes)
    n_members, n_nonmembers, n_validation = wanted
    numbers = {"n_members": n_members, "n_nonmembers": n_nonmembers, "n_validation": n_validation}
    try:
        drawn = draw_membership(texts, **numbers, seed=seed)
    except DataError:
        # Never refused where every side could be filled twice over with the largest group to spare.
        assert 2 * sum(wanted) + 3 * max(sizes) > sum(sizes)
        return
    sides = [drawn.members, drawn.nonmembers, drawn.validation]
    assert tuple(map(len, sides)) == wanted
    names = [{texts.groups[i] for i in side} for side in sides]
    assert len(set().union(*names)) == sum(map(len, names))
    assert all(len(set(side.tolist())) == len(side) for side in sides)
    again = draw_membership(texts, **numbers, seed=seed)
    assert np.array_equal(again.members, drawn.members)


def test_few_huge_documents_still_reach_the_numbers():
    rng = np.random.default_rng(0)
    sizes = np.maximum(1, rng.pareto(1.0, 151) * 40).astype(int)
    sizes[0] = 3000
    texts = corpus(sizes.tolist())
    for seed in range(3):
        half = len(texts) // 3
        drawn = draw_membership(texts, n_members=half, n_nonmembers=half, n_validation=200, seed=seed)
        assert (len(drawn.members), len(drawn.nonmembers), len(drawn.validation)) == (
            half,
            half,
            200,
        )


def test_repeats_and_empty_texts_are_never_drawn():
    texts = Texts(texts=("a", "A ", "b", "", "c", " B", "d"), ids=tuple("1234567"))
    for seed in range(20):
        drawn = draw_membership(texts, n_members=2, n_nonmembers=1, n_validation=1, seed=seed)
        rows = sorted([*drawn.members, *drawn.nonmembers, *drawn.validation])
        assert rows == [0, 2, 4, 6]


def test_without_groups_all_rows_can_be_used():
    texts = Texts(texts=tuple(map(str, range(50))), ids=tuple(map(str, range(50))))
    drawn = draw_membership(texts, n_members=20, n_nonmembers=25, n_validation=5, seed=0)
    assert len({*drawn.members, *drawn.nonmembers, *drawn.validation}) == 50
    other = draw_membership(texts, n_members=20, n_nonmembers=25, n_validation=5, seed=1)
    assert set(other.members) != set(drawn.members)


def test_too_few_texts_or_groups_are_refused_with_counts():
    texts = corpus([5, 5])
    with pytest.raises(DataError, match=r"11 in all.*only 10 of the 10 texts"):
        draw_membership(texts, n_members=5, n_nonmembers=5, n_validation=1, seed=0)
    with pytest.raises(DataError, match=r"10 distinct texts in 2 groups \(the largest has 5\)"):
        draw_membership(texts, n_members=3, n_nonmembers=3, n_validation=1, seed=0)
    with pytest.raises(ConfigError, match="0 or more"):
        draw_membership(texts, n_members=-1, n_nonmembers=3, n_validation=1, seed=0)
    drawn = draw_membership(texts, n_members=0, n_nonmembers=0, n_validation=0, seed=0)
    assert len(drawn.members) == len(drawn.nonmembers) == len(drawn.validation) == 0


def test_demo_texts_are_many_distinct_passages_of_many_documents():
    texts = demo_texts()
    assert len(texts) == 2400
    assert len(set(texts.groups)) == 233
    lengths = [len(text.split()) for text in texts.texts]
    assert min(lengths) >= 60
    assert max(lengths) <= 130
    drawn = draw_membership(texts, n_members=600, n_nonmembers=1200, n_validation=200, seed=0)
    members, nonmembers = texts.take(drawn.members.tolist()), texts.take(drawn.nonmembers.tolist())
    assert compare_sets(members.texts, nonmembers.texts).across.rows.size == 0
    digest = hashlib.sha256("\n".join(texts.texts).encode()).hexdigest()
    assert digest.startswith("9dd881fc183c")
