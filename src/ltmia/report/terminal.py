"""Results in the terminal: the attacks, control first, then the verdict, what may spoil it, and where the files are.

On a terminal a table; elsewhere (a pipe, a log) plain lines, one attack each, that grep and cut can read.
"""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltmia.evaluation.audit_folder import RECORDS_FILE, REPORT_FILE, RESULTS_FILE
from ltmia.evaluation.results import Measure, Results
from ltmia.report.words import CONTROL, FPR_NAMES, LIGHTS, attack_order, headline, named_checks, observer_lines, unread

STYLES = {"warning": "yellow", "failed": "bold red"}


def print_results(results: Results, folder: Path, console: Console) -> None:
    """Print the attacks, control first, then verdict, checks that are not fine, and where the files are."""
    if results.attacks and console.is_terminal:
        console.print(attack_table(results))
    elif results.attacks:
        for line in attack_lines(results):
            _print(console, line)
    _print(console, headline(results), "bold")
    _print(console, results.verdict)
    for name, check in named_checks(results.validity):
        if check.status in STYLES:
            light = LIGHTS[check.status]
            _print(console, f"{light.mark} {light.word}: {name}. {check.sentence}", STYLES[check.status])
    for line in filter(None, (*observer_lines(results), unread(results))):
        _print(console, line)
    for title, file in (("Report", REPORT_FILE), ("Figures", RESULTS_FILE), ("Records", RECORDS_FILE)):
        _print(console, f"{title + ':':<9}{folder / file}")


def attack_table(results: Results) -> Table:
    """Lay out one row per attack: AUC and TPR at each FPR with 95 % intervals; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title_justify="left", title_style="")
    table.title = "Attacks, with 95 % intervals. The first is the control: it never sees the model."
    table.add_column("attack", no_wrap=True)
    table.add_column("AUC", no_wrap=True)
    for fpr in ("0.1", "0.01"):
        table.add_column(f"TPR at {FPR_NAMES[fpr]} FPR", no_wrap=True)
    for name in attack_order(results):
        attack = results.attacks[name]
        style = "dim" if name == CONTROL else "bold" if name == results.decisions.attack else ""
        figures = (attack.auc, attack.tpr("0.1"), attack.tpr("0.01"))
        table.add_row(Text(name), *(short_measure(m) for m in figures), style=style)
    return table


def attack_lines(results: Results) -> list[str]:
    """Write one line per attack."""
    lines = []
    for name in attack_order(results):
        attack = results.attacks[name]
        tpr = ", ".join(f"TPR at {FPR_NAMES[fpr]} FPR {short_measure(attack.tpr(fpr))}" for fpr in ("0.1", "0.01"))
        role = " (control, sees no model)" if name == CONTROL else ""
        lines.append(f"{name}{role}: AUC {short_measure(attack.auc)}, {tpr}")
    return lines


def short_measure(measure: Measure) -> str:
    """Write a figure with its interval in little room; why there is none is in the report."""
    if measure.value is None:
        return "n/a"
    if measure.low is None or measure.high is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} {measure.low:.3f}–{measure.high:.3f}"


def _print(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is; only a terminal breaks it, between words."""
    # Names come from files: what would move the cursor or colour the rest is shown, not obeyed.
    plain = "".join(c if c.isprintable() else "�" for c in line)
    console.print(Text(plain), style=style, soft_wrap=not console.is_terminal)
