"""The HTML report: a pure function of `results.json` and `records.parquet`, one file without any network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ltmia.evaluation.files import read_records, read_results
from ltmia.evaluation.results import Measure, Results
from ltmia.evaluation.roc import Scores
from ltmia.report.figures import histogram_figure, roc_figure

REPORT_FILE = "report.html"
N_CURVES = 4
"""Attacks drawn into the ROC beside the control."""
CONTROL = "bag_of_words"


def write_report(folder: Path) -> Path:
    """Render the report of a finished audit or score again, from its files alone.

    Raises:
        StoreError: If the files are missing or damaged.
    """
    page = render_report(read_results(folder), read_records(folder))
    path = folder / REPORT_FILE
    part = path.with_name(path.name + ".part")
    part.write_text(page, "utf-8")
    part.replace(path)
    return path


def render_report(results: Results, records: pa.Table) -> str:
    """Return the page as text; the same input gives the same bytes."""
    environment = Environment(loader=PackageLoader("ltmia.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters["measure"] = format_measure
    labelled = labelled_scores(records)
    judge = results.decisions.attack
    return environment.get_template("report.html.j2").render(
        results=results,
        order=attack_order(results),
        roc=Markup(roc_figure(_chosen_curves(results, labelled))) if labelled else "",  # noqa: S704  our own SVG
        histogram=Markup(histogram_figure(*labelled[judge], judge)) if judge in labelled else "",  # noqa: S704
        records=embedded_json(record_columns(records)),
    )


def attack_order(results: Results) -> list[str]:
    """Return the attacks to show: the control first, then by AUC, falling."""
    rest = [name for name in results.attacks if name != CONTROL]
    rest.sort(key=lambda name: -(results.attacks[name].auc.value or 0.0))
    return ([CONTROL] if CONTROL in results.attacks else []) + rest


def labelled_scores(records: pa.Table) -> dict[str, tuple[Scores, Scores]]:
    """Return member and non-member scores by attack; nothing when there are no labels."""
    labels = np.array(records["label"].to_pylist(), np.float64)
    scores = {}
    for column in records.column_names:
        if column.startswith("score_") and not np.isnan(labels).all():
            values = records[column].to_numpy().astype(np.float64)
            scores[column.removeprefix("score_")] = (values[labels == 1], values[labels == 0])
    return scores


def format_measure(measure: Measure) -> str:
    """Write a figure with its interval, or why there is none."""
    if measure.value is None:
        return measure.reason or "not measured"
    if measure.low is None or measure.high is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"


def record_columns(records: pa.Table) -> dict[str, list[Any]]:
    """Return what the page's table shows, numbers rounded to what can be read."""
    columns: dict[str, list[Any]] = {}
    for name in records.column_names:
        values = records[name].to_pylist()
        if pa.types.is_floating(records.schema.field(name).type):
            values = [None if v is None or np.isnan(v) else float(f"{v:.4g}") for v in values]
        columns[name] = values
    return columns


def embedded_json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped above


def _chosen_curves(results: Results, labelled: Mapping[str, tuple[Scores, Scores]]) -> dict[str, tuple[Scores, Scores]]:
    """The attack that decides, the strongest others, and the control."""
    names = [results.decisions.attack, *attack_order(results)[1:]]
    chosen = list(dict.fromkeys(name for name in names if name in labelled))[:N_CURVES]
    if CONTROL in labelled:
        chosen.append(CONTROL)
    return {name: labelled[name] for name in chosen}
