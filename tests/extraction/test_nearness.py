"""Common runs and edit distances against their definitions, written out plainly."""

from collections.abc import Sequence
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from ltmia.extraction.nearness import edit_distance, longest_common_run

FEW = st.lists(st.integers(0, 3), max_size=12)


def plain_distance(first: Sequence[int], second: Sequence[int]) -> int:
    @cache
    def of(i: int, j: int) -> int:
        if not (i and j):
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (first[i - 1] != second[j - 1]))

    return of(len(first), len(second))


@given(FEW, FEW)
def test_both_are_what_their_definitions_say(first: list[int], second: list[int]) -> None:
    longest = max(len(first), len(second))
    assert edit_distance(first, second) == (plain_distance(first, second) / longest if longest else 0)
    runs = {tuple(first[i:j]) for i in range(len(first)) for j in range(i + 1, len(first) + 1)}
    common = [len(run) for run in runs if any(tuple(second[k : k + len(run)]) == run for k in range(len(second)))]
    assert longest_common_run(first, second) == max(common, default=0)


@given(st.text(max_size=300), st.text(max_size=300))
def test_texts_of_any_characters_are_compared(first: str, second: str) -> None:
    assert 0 <= edit_distance(first, second) <= 1
    assert edit_distance(first, second) == edit_distance(second, first)
    assert longest_common_run(first, second) == longest_common_run(second, first)
    assert (edit_distance(first, second) == 0) == (first == second)
    assert longest_common_run(first + second, second) == len(second)
