"""Results in the terminal: a table of attacks, the verdict, and what may spoil it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ltmia.evaluation.results import AttackResult, Results
from ltmia.report.page import attack_order, format_measure

MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED", "not_measured": "not measured"}


def print_results(results: Results, folder: Path, console: Console) -> None:
    """Print the attacks, control first, then verdict, checks that are not ok, and where the files are."""
    if results.attacks:
        console.print(attack_table(results))
    console.print(results.verdict, markup=False)
    for name, check in results.validity:
        if check.status not in ("ok", "not_measured"):
            console.print(f"{MARKS[check.status]} ({name}): {check.sentence}", markup=False)
    console.print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def attack_table(results: Results) -> Table:
    """Lay out one row per attack: AUC and TPR at each FPR with 95 % intervals."""
    table = Table(title="Attacks, with 95 % intervals; the control never sees the model")
    for heading in ("attack", "AUC", "TPR @ 10 % FPR", "TPR @ 1 % FPR"):
        table.add_column(heading, no_wrap=heading == "attack")
    for name in attack_order(results):
        table.add_row(name, *_cells(results.attacks[name]))
    return table


def _cells(attack: AttackResult) -> list[str]:
    return [
        format_measure(m) if m.value is not None else "n/a"
        for m in (attack.auc, attack.tpr_at_fpr["0.1"], attack.tpr_at_fpr["0.01"])
    ]
