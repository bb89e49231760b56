"""An exam as Markdown tables and as a figure: macro averages, what carries over to what, each combination."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltmia.attacks.table import EXCESS, LEARNED
from ltmia.evaluation.macro import (
    FIGURES,
    Examined,
    Macro,
    best_rule,
    error_ratio,
    figure_of,
    macro_averages,
    mean_with_interval,
)
from ltmia.evaluation.results import Measure
from ltmia.evaluation.wording import figure as written
from ltmia.report.figures import Contest, exam_figure

SLICES = ("architecture", "corpus", "regime")
ALL = "all"

Recipes = Mapping[str, Mapping[str, Any]]
"""What each combination was made by: its architecture, corpus and regime."""


def exam_tables(examined: Mapping[str, Examined], recipes: Recipes) -> str:
    """Write macro averages over all and by slices, the transfer matrix, and each combination, as Markdown."""
    parts = ["# Exam", "", *_averages("all combinations", list(examined.values()))]
    parts += _transfer(examined, recipes)
    for kind in SLICES:
        for value, names in _grouped(recipes, kind).items():
            parts += _averages(f"{kind} {value}", [examined[name] for name in names])
    parts += _combinations(examined)
    return "\n".join(parts) + "\n"


def draw_exam(examined: Mapping[str, Examined], recipes: Recipes) -> str:
    """Draw the AUC on each combination beside that of its best published attack, by architecture."""
    groups = {
        architecture: [Contest(name, examined[name][LEARNED].auc, _best(examined[name])[1]) for name in names]
        for architecture, names in _grouped(recipes, "architecture").items()
    }
    return exam_figure(groups, LEARNED, "best published attack")


def _grouped(recipes: Recipes, kind: str) -> dict[str, list[str]]:
    """Return names of combinations by what they have in common, both in order."""
    groups = defaultdict(list)
    for name in sorted(recipes):
        groups[str(recipes[name].get(kind) or "unknown")].append(name)
    return dict(sorted(groups.items()))


def _best(one: Examined) -> tuple[str, Measure]:
    name = best_rule(one, leave_out=[LEARNED, EXCESS])
    return name, one[name].auc


def _ratio(examined: Sequence[Examined]) -> Measure:
    ratio = error_ratio(examined, LEARNED, leave_out=[EXCESS])
    return Measure(value=ratio.value, reason=ratio.reason) if len(examined) == 1 else ratio


def _auc(examined: Sequence[Examined]) -> Measure:
    if len(examined) == 1:
        return examined[0][LEARNED].auc
    return mean_with_interval([figure_of(one[LEARNED], "auc") for one in examined])


def _averages(title: str, examined: list[Examined]) -> list[str]:
    head = "| attack | AUC | TPR at 10 % FPR | TPR at 1 % FPR | TPR at 0.1 % FPR |"
    rows = [_row(macro) for macro in macro_averages(examined)]
    ratio = written(_ratio(examined))
    note = f"(1 - AUC) of {LEARNED} over that of each combination's best published attack: {ratio}"
    return [f"## {title} ({len(examined)})", "", head, "|---|---|---|---|---|", *rows, "", note, ""]


def _row(macro: Macro) -> str:
    cells = [written(macro.figures[figure]) for figure in FIGURES]
    return f"| {macro.attack} | {' | '.join(cells)} |"


def _transfer(examined: Mapping[str, Examined], recipes: Recipes) -> list[str]:
    parts = ["## transfer", "", "Means over the combinations of an architecture and a corpus, their number behind."]
    for title, figure in ((f"AUC of {LEARNED}", _auc), ("(1 - AUC) over the best published attack's", _ratio)):
        parts += ["", *_matrix(title, figure, examined, recipes)]
    return [*parts, ""]


def _matrix(
    title: str,
    figure: Callable[[Sequence[Examined]], Measure],
    examined: Mapping[str, Examined],
    recipes: Recipes,
) -> list[str]:
    """Return a table of a figure, an architecture a row and a corpus a column, with the margins."""
    rows, columns = (_grouped(recipes, kind) | {ALL: sorted(recipes)} for kind in ("architecture", "corpus"))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, in_row in rows.items():
        cells = []
        for in_column in columns.values():
            here = [examined[name] for name in in_row if name in in_column]
            cells.append(f"{written(figure(here))} ({len(here)})" if here else "–")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _combinations(examined: Mapping[str, Examined]) -> list[str]:
    lines = [f"| combination | {LEARNED} | best published attack | (1 - AUC) over its |", "|---|---|---|---|"]
    for name, one in sorted(examined.items()):
        rule, best = _best(one)
        cells = (
            name,
            written(one[LEARNED].auc),
            f"{rule} {written(best)}",
            written(_ratio([one])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return ["## AUC of each combination", "", *lines, ""]
