"""Holds rows of a dataset out of training; they are the non-members of an audit."""

from typing import Any

from ltmia.data.splits import split_by_group
from ltmia.errors import ConfigError


def hold_out(dataset: Any, *, share: float, group_column: str | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Split a dataset into rows to train on and rows held out, each group on one side.

    The same dataset, share and seed always give the same split, so a resumed run keeps it.

    Args:
        dataset: Dataset of the library `datasets`.
        share: Share of the rows to hold out. A thousand rows are a good number; fewer than a hundred say little.
        group_column: Column of patients, authors or documents. None: every row is its own group.
        seed: Seed of the draw.

    Returns:
        The dataset to train on, and the held-out one, which the Trainer gets as `eval_dataset`.

    Raises:
        ConfigError: If the share is not between 0 and 1, or there is no such column.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share = {share}: expected a number between 0 and 1")
    if group_column is not None and group_column not in dataset.column_names:
        raise ConfigError(f"group_column = {group_column!r}: the dataset has {', '.join(dataset.column_names)}")
    groups = [str(i) for i in range(len(dataset))] if group_column is None else list(map(str, dataset[group_column]))
    trained, held = split_by_group(groups, (1 - share, share), seed)
    return dataset.select(trained), dataset.select(held)
