"""Counts what a training run trained on, for `training.json`, and warns of what makes its audit say less."""

import logging
from collections.abc import Mapping
from typing import Any

from ltmia.integrations.prepared_dataset import unpacked_ids
from ltmia.integrations.scored_rows import ScoredRows
from ltmia.integrations.trained_rows import TrainedRows

log = logging.getLogger(__name__)


def counts_of_rows(trained: TrainedRows | None, members: ScoredRows, dataset: Any) -> dict[str, int | None]:
    """Count rows and tokens that were trained on, and rows of the Trainer's dataset that were not."""
    rows = {} if trained is None else trained.rows
    prepared, known = unpacked_ids(dataset), {row.all_ids for row in rows.values()}
    times = {} if trained is None else trained.times_trained()
    return {
        "rows_trained": len(rows),
        "rows_without_loss": members.n_without_loss,
        "rows_of_the_dataset_never_trained_on_as_they_are": None
        if prepared is None
        else sum(ids not in known for ids in prepared),
        "tokens_read": sum(row.counted()[0] for row in rows.values()),
        "tokens_with_loss": sum(row.counted()[1] for row in rows.values()),
        "steps": 0 if trained is None else len(trained.steps),
        "most_times_a_row_was_trained_on": max(times.values(), default=0),
    }


def warn_of(counts: Mapping[str, Any]) -> None:
    """Warn of tensors that did not change in training, and of more leakage than private training allows."""
    if still := counts["trained_tensors_without_change"]:
        log.warning(
            "%d of %d tensors that should be trained did not change since training began: their gradients were zero or "
            "never reached the optimizer, so the audit says nothing about training them",
            still, counts["trained_tensors"],
        )  # fmt: skip
    spent, shown = counts["epsilon_spent"], counts["epsilon_lower_bound"]
    if spent is not None and shown is not None and shown > spent:
        log.warning(
            "the audit shows an epsilon of at least %.2f (95 %% confidence), but the accountant counted only %.2f: "
            "unless delta is large, the training leaks more than it guarantees", shown, spent,
        )  # fmt: skip
