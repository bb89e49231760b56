"""Shows results in the terminal: the verdict, cautions, one table of the attacks, and the paths of the files.

A pipe and a terminal get the same lines; a terminal also gets colours, and fewer columns if it is narrow.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.text import Text

from ltmia.evaluation.audit_folder import RECORDS_FILE, REPORT_FILE, RESULTS_FILE
from ltmia.evaluation.results import Results
from ltmia.evaluation.shown import one_line
from ltmia.evaluation.summary import Summary, summarise
from ltmia.evaluation.wording import figure
from ltmia.report.canary_words import HEAD, canary_lines, canary_rows
from ltmia.report.extraction_words import continued_line, extraction_line
from ltmia.report.secret_words import secrets_line
from ltmia.report.words import (
    CONTROL,
    FPR_NAMES,
    LIGHTS,
    SIGNS,
    attack_order,
    named_checks,
    observer_lines,
    of_group,
    unread,
)

STYLES = {"warning": "yellow", "failed": "bold red"}
VERDICT_STYLES = {"failed": "bold red", "passed": "bold green", "inconclusive": "bold yellow"}
RATES = ("0.1", "0.01")
"""False-positive rates of the table."""


def print_results(results: Results, folder: Path, console: Console, named: Callable[[str], str] = str) -> None:
    """Print the verdict, one line for each caution, the attacks (control first), and the paths of the files.

    Args:
        results: Results of an audit or a score.
        folder: Its folder.
        console: Where to print.
        named: Names the options in a sentence as whoever reads it does.
    """
    summary = summarise(results)
    for line, style in (*_verdict(results, summary), *_cautions(results, summary)):
        _print(console, named(line), style)
    drawn_out = extraction_line(results), continued_line(results), secrets_line(results)
    for line in filter(None, (*observer_lines(results), *drawn_out, unread(results))):
        _print(console, named(line))
    if results.attacks:
        _print(console, "")
        for line, style in zip(attack_table(results, _width(console)), _row_styles(results), strict=True):
            _print(console, line, style)
        for line in _unmeasured(results):
            _print(console, line)
        _print(console, "")
    for line in canary_table(results):
        _print(console, line)
    for title, file in (("Report", REPORT_FILE), ("Figures", RESULTS_FILE), ("Records", RECORDS_FILE)):
        _print(console, f"{title + ':':<9}{folder / file}")


def group_table(groups: pa.Table) -> list[str]:
    """Lay out a heading and one line per group, groups with the smallest p-values first.

    Args:
        groups: Of `groups.parquet`.
    """
    rows = groups.to_pylist()
    rows.sort(key=lambda row: 1.0 if row["p_value"] is None or math.isnan(row["p_value"]) else row["p_value"])
    head = {"n_texts": "texts", "p_value": "p", "q_value": "q", "n_flagged": "flagged texts"}
    head |= {"n_extractable": "drawn out", "strongest": "strongest text"}
    lines = [["group", "used", *head.values()]]
    for row in rows:
        decided = "⚑ yes" if row["flagged"] else "cannot tell"
        lines.append([row["group"], decided, *(of_group(row, name) for name in head)])
    return _in_columns(lines)


def canary_table(results: Results) -> list[str]:
    """Lay out canaries by number of copies, and what stands beside; nothing if the texts are no canaries."""
    rows = canary_rows(results)
    return [*_in_columns([list(HEAD), *map(list, rows)]), *canary_lines(results), ""] if rows else []


def _verdict(results: Results, summary: Summary) -> list[tuple[str, str]]:
    """Return the lines of the verdict with their styles, and what the audit is of."""
    lines = [(f"{SIGNS[summary.status]} {summary.word}", VERDICT_STYLES[summary.status])]
    lines += [(f"- {point}", "") for point in summary.points]
    lines += [] if results.subject is None else [(results.subject, "bold")]
    return [*lines, (f"{summary.limits} {summary.observer}", "dim")]


def _cautions(results: Results, summary: Summary) -> list[tuple[str, str]]:
    """Return a line with its style for each check that found a problem; a sentence is not repeated."""
    lines = []
    for name, check in named_checks(results.validity):
        if check.status in STYLES:
            light = LIGHTS[check.status]
            said = "" if check.sentence in summary.points else f" {check.sentence}"
            lines.append((f"{light.mark} {light.word}: {name}.{said}", STYLES[check.status]))
    return lines


def attack_table(results: Results, width: int | None = None) -> list[str]:
    """Lay out a heading and one line per attack: AUC, and TPR at each FPR, with 95 % intervals.

    Args:
        results: Results of an audit with attacks.
        width: Width of the terminal in characters; if it is too small, the table keeps the smallest FPR. None: no
            limit.

    An FPR at which nothing was measured has no column.
    """
    rates = tuple(fpr for fpr in RATES if any(a.tpr(fpr).value is not None for a in results.attacks.values()))
    lines = _aligned(results, rates)
    return lines if width is None or max(map(len, lines)) <= width else _aligned(results, rates[-1:])


def _unmeasured(results: Results) -> list[str]:
    """Say why the attack that decides has no TPR, for each FPR of the table."""
    judge = results.attacks.get(results.decisions.attack)
    missing = [(fpr, judge.tpr(fpr)) for fpr in RATES] if judge else []
    return [f"TPR at {FPR_NAMES[fpr]} FPR: {figure(rate)}." for fpr, rate in missing if rate.value is None]


def _aligned(results: Results, rates: tuple[str, ...]) -> list[str]:
    rows = [["attack", "AUC", *(f"TPR at {FPR_NAMES[fpr]} FPR" for fpr in rates)]]
    for name in attack_order(results):
        attack = results.attacks[name]
        measures = (attack.auc, *(attack.tpr(fpr) for fpr in rates))
        # Why a figure is missing takes a sentence, which is in the report.
        rows.append([name, *("n/a" if m.value is None else figure(m) for m in measures)])
    return _in_columns(rows)


def _in_columns(rows: list[list[str]]) -> list[str]:
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row_styles(results: Results) -> list[str]:
    styles = {CONTROL: "dim", results.decisions.attack: "bold"}
    return ["dim", *(styles.get(name, "") for name in attack_order(results))]


def _width(console: Console) -> int | None:
    return console.width if console.is_terminal else None


def _plain(line: str) -> str:
    """Show what would move the cursor or colour the rest; names and sentences come from files."""
    return "".join(c if c.isprintable() else "�" for c in line)


def _print(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is; only a terminal breaks it, between words."""
    console.print(Text(_plain(line)), style=style, soft_wrap=not console.is_terminal)
