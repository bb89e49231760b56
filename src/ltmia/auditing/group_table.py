"""Columns of `groups.parquet`: each group of texts to judge as a whole, and its texts that stand out most."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.auditing.text_sets import TextSets
from ltmia.evaluation.group_decisions import GroupDecisions
from ltmia.extraction.suffixes import NAMED_DRAWS


def group_columns(
    data: TextSets, hashed: Sequence[str | None], groups: GroupDecisions, records: pa.Table, judge: str
) -> dict[str, Any]:
    """Lay out the columns of `groups.parquet`, with the groups ordered by number.

    Args:
        data: The texts.
        hashed: Each text's group as it is handed on.
        groups: Decisions on each group.
        records: Table written to `records.parquet`.
        judge: The attack that decides.
    """
    names = names_of_groups(data, hashed)
    return {
        "group": [names[number] for number in groups.numbers.tolist()],
        "n_texts": groups.n_texts,
        "n_compared": groups.n_compared,
        "n_calibration": groups.n_calibration,
        "p_value": groups.decisions.p_values,
        "q_value": groups.decisions.q_values,
        "flagged": groups.decisions.flagged,
        **_single_texts(data, groups, records, judge),
    }


def names_of_groups(data: TextSets, hashed: Sequence[str | None]) -> dict[int, str]:
    """Return the name of each group in the published files, by its number."""
    numbers = [] if data.groups is None else data.groups.tolist()
    return {number: name for number, name in zip(numbers, hashed, strict=data.groups is not None) if name is not None}


def _single_texts(data: TextSets, groups: GroupDecisions, records: pa.Table, judge: str) -> dict[str, Any]:
    """Return each group's strongest text, and the numbers of its texts that are flagged and that can be drawn out."""
    of_text = np.empty(0, np.int64) if data.groups is None else data.groups[: data.n_judged]
    scores = records[f"score_{judge}"].to_numpy().astype(np.float64)[: data.n_judged]
    flagged = np.array(records["flagged"].to_pylist()[: data.n_judged], np.bool_)
    needed, by_base = (
        np.array([draws or np.inf for draws in records[name].to_pylist()[: data.n_judged]])
        for name in ("extractable_within", "extractable_within_by_base")
    )
    drawn = (needed <= NAMED_DRAWS) & (by_base > NAMED_DRAWS)
    measured = np.array([n is not None for n in records["suffix_tokens"].to_pylist()[: data.n_judged]], np.bool_)
    order = np.argsort(of_text, kind="stable")
    starts, stops = (np.searchsorted(of_text[order], groups.numbers, side) for side in ("left", "right"))
    rows = [order[start:stop] for start, stop in zip(starts, stops, strict=True)]
    strongest = [int(texts[np.argmax(np.nan_to_num(scores[texts], nan=-np.inf))]) for texts in rows]
    return {
        "n_flagged": [int(flagged[texts].sum()) for texts in rows],
        "n_extractable": pa.array(
            [int(drawn[texts].sum()) if measured[texts].any() else None for texts in rows], pa.int64()
        ),
        "strongest": records["id"].take(strongest) if strongest else pa.array([], pa.string()),
    }
