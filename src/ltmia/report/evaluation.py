"""Evaluation of a classifier as Markdown tables and as a figure: averages, transfer, and each combination."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltmia.attacks.table import EXCESS, LEARNED
from ltmia.evaluation.macro import (
    FIGURES,
    CombinationResults,
    Macro,
    best_rule,
    error_ratio,
    figure_of,
    macro_averages,
    mean_with_interval,
)
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure as written
from ltmia.report.figures import Contest, evaluation_figure

SLICES = ("architecture", "corpus", "regime")
ALL = "all"

Recipes = Mapping[str, Mapping[str, Any]]
"""Architecture, corpus and regime of each combination."""


def evaluation_tables(results: Mapping[str, CombinationResults], recipes: Recipes) -> str:
    """Return Markdown: macro averages over all and by slices, the transfer matrix, and each combination."""
    parts = ["# Evaluation", "", *_averages("all combinations", list(results.values()))]
    parts += _transfer(results, recipes)
    for kind in SLICES:
        for value, names in _grouped(recipes, kind).items():
            parts += _averages(f"{kind} {value}", [results[name] for name in names])
    parts += _combinations(results)
    return "\n".join(parts) + "\n"


def draw_evaluation(results: Mapping[str, CombinationResults], recipes: Recipes) -> str:
    """Draw the AUC on each combination beside that of its best published attack, by architecture."""
    groups = {
        architecture: [Contest(name, results[name][LEARNED].auc, _best(results[name])[1]) for name in names]
        for architecture, names in _grouped(recipes, "architecture").items()
    }
    return evaluation_figure(groups, LEARNED, "best published attack")


def _grouped(recipes: Recipes, kind: str) -> dict[str, list[str]]:
    """Return the names of combinations by their architecture, corpus or regime; both are sorted."""
    groups = defaultdict(list)
    for name in sorted(recipes):
        groups[str(recipes[name].get(kind) or "unknown")].append(name)
    return dict(sorted(groups.items()))


def _best(one: CombinationResults) -> tuple[str, Measure]:
    name = best_rule(one, leave_out=[LEARNED, EXCESS])
    return name, one[name].auc


def _ratio(results: Sequence[CombinationResults]) -> Measure:
    ratio = error_ratio(results, LEARNED, leave_out=[EXCESS])
    return Measure(value=ratio.value, reason=ratio.reason) if len(results) == 1 else ratio


def _auc(results: Sequence[CombinationResults]) -> Measure:
    if len(results) == 1:
        return results[0][LEARNED].auc
    return mean_with_interval([figure_of(one[LEARNED], "auc") for one in results])


def _averages(title: str, results: list[CombinationResults]) -> list[str]:
    head = "| attack | AUC | TPR at 10 % FPR | TPR at 1 % FPR | TPR at 0.1 % FPR |"
    rows = [_row(macro) for macro in macro_averages(results)]
    ratio = written(_ratio(results))
    note = f"(1 - AUC) of {LEARNED} over that of each combination's best published attack: {ratio}"
    return [f"## {title} ({len(results)})", "", head, "|---|---|---|---|---|", *rows, "", note, ""]


def _row(macro: Macro) -> str:
    cells = [written(macro.figures[figure]) for figure in FIGURES]
    return f"| {macro.attack} | {' | '.join(cells)} |"


def _transfer(results: Mapping[str, CombinationResults], recipes: Recipes) -> list[str]:
    parts = [
        "## transfer",
        "",
        "Means over combinations of an architecture and a corpus; their number in brackets.",
    ]
    for title, figure in ((f"AUC of {LEARNED}", _auc), ("(1 - AUC) over the best published attack's", _ratio)):
        parts += ["", *_matrix(title, figure, results, recipes)]
    return [*parts, ""]


def _matrix(
    title: str,
    figure: Callable[[Sequence[CombinationResults]], Measure],
    results: Mapping[str, CombinationResults],
    recipes: Recipes,
) -> list[str]:
    """Return a table of a figure: one row per architecture, one column per corpus, and a total of each."""
    rows, columns = (_grouped(recipes, kind) | {ALL: sorted(recipes)} for kind in ("architecture", "corpus"))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, in_row in rows.items():
        cells = []
        for in_column in columns.values():
            here = [results[name] for name in in_row if name in in_column]
            cells.append(f"{written(figure(here))} ({len(here)})" if here else "–")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _combinations(results: Mapping[str, CombinationResults]) -> list[str]:
    lines = [f"| combination | {LEARNED} | best published attack | (1 - AUC) over its |", "|---|---|---|---|"]
    for name, one in sorted(results.items()):
        rule, best = _best(one)
        cells = (
            name,
            written(one[LEARNED].auc),
            f"{rule} {written(best)}",
            written(_ratio([one])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return ["## AUC of each combination", "", *lines, ""]
