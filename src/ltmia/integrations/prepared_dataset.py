"""Finds trained rows in the dataset that a Trainer prepared, by their token ids."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from ltmia.errors import ConfigError
from ltmia.integrations.trained_rows import TrainedRow

PAIR_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Columns of the dataset that TRL's `DPOTrainer` prepares."""
PACKED_LENGTHS = "seq_lengths"
"""Column of the dataset that TRL's `SFTTrainer` packs: the lengths of the rows of which each packed row consists."""


def groups_of(rows: Mapping[str, TrainedRow], dataset: Any, column: str) -> dict[str, str]:
    """Find the group of each row by its ids.

    Raises:
        ConfigError: If a dataset has no such column, or a row is in none of its rows, as after packing.
    """
    prepared = ids_by_row(dataset)
    if prepared is None or column not in dataset.column_names:
        raise ConfigError(f"group_column = {column!r}: the Trainer's datasets have no such column beside their ids")
    by_ids = dict(zip(prepared, map(str, dataset[column]), strict=True))
    found = {name: by_ids.get(row.all_ids) for name, row in rows.items()}
    if lost := sum(group is None for group in found.values()):
        raise ConfigError(
            f"group_column={column!r}: {lost} of {len(found)} rows are not in the dataset as they were trained on, so "
            "their groups are not known. Packing and a collator that cuts do this: do neither, or leave out the groups."
        )
    return {name: str(group) for name, group in found.items()}


def unpacked_ids(dataset: Any) -> list[tuple[int, ...]] | None:
    """Return `ids_by_row` with each packed row split into the rows of which it consists."""
    prepared = ids_by_row(dataset)
    if prepared is None or PACKED_LENGTHS not in dataset.column_names:
        return prepared
    rows = ((iter(ids), lengths) for ids, lengths in zip(prepared, dataset[PACKED_LENGTHS], strict=True))
    return [tuple(islice(ids, length)) for ids, lengths in rows for length in lengths]


def ids_by_row(dataset: Any) -> list[tuple[int, ...]] | None:
    """Return the token ids of a dataset's rows as `TrainedRow.all_ids`; None where it holds none, or has no length."""
    columns = set(getattr(dataset, "column_names", None) or [])
    if not hasattr(dataset, "__len__"):
        return None
    if columns >= set(PAIR_IDS):
        pairs = zip(*(dataset[name] for name in PAIR_IDS), strict=True)
        return [(*prompt, *chosen, *prompt, *rejected) for prompt, chosen, rejected in pairs]
    return [tuple(ids) for ids in dataset["input_ids"]] if "input_ids" in columns else None
