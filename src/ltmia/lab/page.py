"""The page of a lab: what is done, and how well each attack tells members apart on each combination."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltmia.attacks.table import ATTACKS, CONTROL, EXCESS
from ltmia.evaluation.summary import Status
from ltmia.evaluation.wording import number
from ltmia.lab.state import LabStatus, StepRecord
from ltmia.report.tables import Table, TablePage

SHOWN = ("difference", "ez_mia", "wbc", "loss", CONTROL)
"""Attacks with a column."""


def lab_page(folder: Path, status: LabStatus) -> TablePage:
    """Lay out the state and the figures of a lab.

    Args:
        folder: Folder of the lab.
        status: State of its steps.
    """
    found, word = _verdict(status)
    stores = [step for step in status.steps if step.kind == "extract"]
    done = [step for step in stores if step.state == "done"]
    return TablePage(
        kind="lab",
        title="Lab",
        subject=folder.resolve().name,
        status=found,
        word=word,
        points=(
            f"{len(done)} of {len(stores)} combinations have their store.",
            f"{status.count('done')} of {len(status.steps)} steps are done, {len(status.failed)} failed.",
        ),
        tables=(_combinations(done), _failures(status)),
    )


def _verdict(status: LabStatus) -> tuple[Status, str]:
    if status.failed:
        return "failed", "Steps failed"
    if status.count("done") == len(status.steps):
        return "passed", "All is done"
    return "inconclusive", "At work" if status.running else "Not finished"


def _combinations(done: list[StepRecord]) -> Table:
    rows = [
        (
            step.name,
            f"{_shown(step.result, 'reference_member_loss')} → {_shown(step.result, 'member_loss')}",
            *(_shown(step.result, name) for name in SHOWN),
            _best(step.result),
        )
        for step in done
    ]
    return Table(
        title="Combinations",
        note="Loss on members before and after fine-tuning, and the AUC of some attacks; "
        f"{CONTROL} sees no model and should be at 0.5.",
        head=("Combination", "Loss on members", *SHOWN, "Best published attack"),
        rows=rows,
    )


def _failures(status: LabStatus) -> Table:
    return Table(
        title="Failures",
        note="The same command tries these again.",
        head=("Step", "Combination", "Why"),
        rows=[(step.kind, step.name, step.error or "") for step in status.failed],
    )


def _shown(result: Mapping[str, Any], name: str) -> str:
    value = result.get(name)
    return "–" if value is None or math.isnan(value) else number(value)


def _best(result: Mapping[str, Any]) -> str:
    published = [name for name in ATTACKS if name not in (CONTROL, EXCESS) and _shown(result, name) != "–"]
    if not published:
        return "–"
    best = max(published, key=lambda name: result[name])
    return f"{best}, {number(result[best])}"
