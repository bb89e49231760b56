"""Splits texts without dividing a group (patient, author, document).

Passages of one document resemble one another, so a split through it would reveal membership.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ltmia.data.duplicates import exact_duplicates, normalise_text
from ltmia.errors import ConfigError, DataError
from ltmia.records import Texts

MAX_DRAWS = 20
"""Number of assignments of groups to sides to try before a draw is called impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Rows drawn for one fine-tune, in rising order. The sides are disjoint, and no group is on two sides."""

    members: Int64[np.ndarray, " members"]
    nonmembers: Int64[np.ndarray, " nonmembers"]
    validation: Int64[np.ndarray, " validation"]
    """Rows held out to watch the fine-tuning; neither members nor non-members of the audit."""


def split_by_group(groups: Sequence[str], fractions: Sequence[float], seed: int) -> list[Int64[np.ndarray, " rows"]]:
    """Split rows into parts of about the given sizes, keeping each group whole.

    Args:
        groups: Group of each row; pass the ids if rows have no groups.
        fractions: Wanted share of the rows in each part, summing to 1.
        seed: Seed of the random choice.

    Returns:
        Rows of each part, rising. No part exceeds its wanted size by a largest group or more.

    Raises:
        ConfigError: If fractions are negative or do not sum to 1.
    """
    if not fractions or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise ConfigError(f"fractions {list(fractions)}: expected shares of 0 to 1 that sum to 1.")
    rng = np.random.default_rng(seed)
    return _allot(_rows_of_groups(groups), _whole_sizes(fractions, len(groups)), rng)


def draw_membership(texts: Texts, *, n_members: int, n_nonmembers: int, n_validation: int, seed: int) -> Membership:
    """Draw members, non-members and validation texts, disjoint by group and by content.

    Whole groups go to one of the three sides, in proportion to the numbers wanted; then texts are drawn from each side.
    Texts without a word, and those that differ from an earlier one only in case and white space, are never drawn.

    Raises:
        ConfigError: If a number is negative.
        DataError: If there are not enough distinct texts, or the groups are too few or too large.
    """
    wanted = (n_members, n_nonmembers, n_validation)
    if min(wanted) < 0:
        raise ConfigError(f"numbers of texts to draw are {wanted}: expected 0 or more.")
    repeats = exact_duplicates(texts.texts)
    usable = np.array(
        [i for i, t in enumerate(texts.texts) if i not in repeats and normalise_text(t)],
        dtype=np.int64,
    )
    shortage = (
        f"{texts.source}: {n_members} members, {n_nonmembers} non-members and {n_validation} "
        f"validation texts are wanted ({sum(wanted)} in all), but "
    )
    if len(usable) < sum(wanted):
        raise DataError(
            f"{shortage}only {len(usable)} of the {len(texts)} texts are distinct and not empty. "
            "Ask for fewer, or give more texts."
        )
    names = texts.ids if texts.groups is None else texts.groups
    groups = _rows_of_groups([names[i] for i in usable])
    for draw in range(MAX_DRAWS):
        rng = np.random.default_rng([seed, draw])
        sides = _allot(groups, _side_sizes(wanted, len(usable)), rng)
        if all(len(side) >= n for side, n in zip(sides, wanted, strict=True)):
            drawn = [usable[np.sort(rng.choice(side, n, replace=False))] for side, n in zip(sides, wanted, strict=True)]
            return Membership(members=drawn[0], nonmembers=drawn[1], validation=drawn[2])
    raise DataError(
        f"{shortage}{len(usable)} distinct texts in {len(groups)} groups (the largest has "
        f"{max(map(len, groups))}) cannot be split like this without dividing a group. Ask for fewer."
    )


def _rows_of_groups(groups: Sequence[str]) -> list[Int64[np.ndarray, " rows"]]:
    """Return the rows of each group, groups in order of their first row."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return [np.array(of_group, dtype=np.int64) for of_group in rows.values()]


def _whole_sizes(shares: Sequence[float], total: int) -> Int64[np.ndarray, " parts"]:
    """Return whole sizes that sum to `total`, by the method of largest remainders."""
    exact = np.asarray(shares, dtype=np.float64) * (total / sum(shares))
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(sizes - exact, kind="stable")
    sizes[by_remainder[: total - int(sizes.sum())]] += 1
    return sizes


def _side_sizes(wanted: Sequence[int], total: int) -> Int64[np.ndarray, " parts"]:
    """Return the number of texts that each side may hold: those wanted, and a share of the rest."""
    if sum(wanted) == 0:
        return np.array([total, 0, 0], dtype=np.int64)
    return np.asarray(wanted) + _whole_sizes(wanted, total - sum(wanted))


def _allot(
    groups: Sequence[Int64[np.ndarray, " rows"]],
    sizes: Int64[np.ndarray, " parts"],
    rng: np.random.Generator,
) -> list[Int64[np.ndarray, " rows"]]:
    """Give each group to one part, at random but so that the parts come close to their sizes.

    Large groups go first, so that small ones even out the sizes. A group goes to a part with room for all of it, with
    chances in proportion to the room. If no part has room, it goes to the one with the most room.
    """
    room = sizes.copy()
    parts: list[list[Int64[np.ndarray, " rows"]]] = [[] for _ in sizes]
    order = sorted(rng.permutation(len(groups)), key=lambda g: -len(groups[g]))  # ties stay random
    for draw, group in zip(rng.random(len(order)), order, strict=True):
        n_rows = len(groups[group])
        open_room = np.cumsum(np.where(room >= n_rows, room, 0))
        fits = open_room[-1] > 0
        part = int(np.searchsorted(open_room, draw * open_room[-1], "right") if fits else room.argmax())
        room[part] -= n_rows
        parts[part].append(groups[group])
    empty = np.empty(0, dtype=np.int64)
    return [np.sort(np.concatenate([empty, *part])) for part in parts]
