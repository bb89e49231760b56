"""How near a continuation comes to the true one: the longest common run, and the edit distance."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

import numpy as np


def longest_common_run(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest run that both have in common, at any places."""
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return the share of the longer one that must be changed to get the other: 0 if they are equal, 1 at most.

    It is Levenshtein's distance (fewest items to insert, delete or replace) divided by the length of the longer one.
    """
    numbers = {item: i for i, item in enumerate(dict.fromkeys([*first, *second]))}
    a, b = (np.array([numbers[item] for item in side], np.int64) for side in (first, second))
    steps = np.arange(len(b) + 1)
    row = steps
    for i, item in enumerate(a, 1):
        kept_or_replaced = row[:-1] + (b != item)
        row = np.concatenate([[i], np.minimum(kept_or_replaced, row[1:] + 1)])
        row = np.minimum.accumulate(row - steps) + steps  # insertions, from any place on the left
    return float(row[-1]) / max(len(a), len(b), 1)
