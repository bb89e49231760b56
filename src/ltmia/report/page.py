"""Writes the HTML report from the files of an audit's folder: one file that loads nothing from the network.

Unless the texts were revealed, it uses only files that may be passed on, and reveals no more than they do.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from ltmia.errors import StoreError
from ltmia.evaluation.audit_folder import (
    GROUPS_FILE,
    PRIVATE_FOLDER,
    RECORDS_FILE,
    REPORT_FILE,
    SPANS_FILE,
    TOKENS_FILE,
    refuse_other_run,
)
from ltmia.evaluation.files import read_audit, read_groups, read_spans_table, read_tokens, run_of
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import Scores, measurable
from ltmia.evaluation.section import Measure
from ltmia.evaluation.summary import summarise
from ltmia.evaluation.wording import number, percent, unmatched, whole_bits
from ltmia.folders import write_whole
from ltmia.ownership import refuse_stranger
from ltmia.report import canary_words, extraction_words, figures, secret_words, words
from ltmia.report.advice import advise
from ltmia.report.payload import LONGEST_TEXT, embedded_json, page_data
from ltmia.report.slices import Records, group_slices, length_slices
from ltmia.shown_names import PROGRAM, flag_of

N_CURVES = 4
"""Number of attacks drawn in the ROC, besides the control."""
INTERVAL = re.compile(r"\[[-+\d.]+(?: %)?, [-+\d.]+(?: %)?\]")
"""An interval in a sentence, which stays on one line."""
NAME = re.compile("`([^`]+)`")
"""A name of an option, a column or an attack in a sentence."""


def write_report(folder: Path, limits: Sequence[Limit] | None = None) -> Path:
    """Render the report of a finished audit or score again, from its files alone.

    Args:
        folder: Folder of the audit; the report is written into it.
        limits: Limits of a policy, which decide the verdict; the default ones when None.

    Raises:
        StoreError: If the files are missing or damaged.
        ConfigError: If the file to be written exists and another program wrote it.
    """
    results, records = read_audit(folder)
    tokens = read_tokens(folder) if results.settings.get("reveal") else None
    if tokens is not None:
        refuse_other_run(folder / PRIVATE_FOLDER / TOKENS_FILE, run_of(tokens), results.run_id)
    groups = read_groups(folder)
    if groups is not None:
        refuse_other_run(folder / GROUPS_FILE, run_of(groups), results.run_id)
    spans = read_spans_table(folder)
    if spans is not None:
        refuse_other_run(folder / SPANS_FILE, run_of(spans), results.run_id)
    if (column := f"score_{results.decisions.attack}") not in records.column_names:
        raise StoreError(
            f"{folder / RECORDS_FILE}: no column {column!r}, which the decisions rest on; run the audit again"
        )
    page = render_report(results, records, tokens, limits, groups, spans)
    path = folder / REPORT_FILE
    refuse_stranger(path, 'name="ltmia-run"')
    write_whole(path, lambda part: part.write_text(page, "utf-8"))
    return path


def render_report(
    results: Results,
    records: pa.Table,
    tokens: pa.Table | None = None,
    limits: Sequence[Limit] | None = None,
    groups: pa.Table | None = None,
    spans: pa.Table | None = None,
) -> str:
    """Return the page as text; the same input gives the same bytes.

    Args:
        results: Content of `results.json`.
        records: Table of `records.parquet`.
        tokens: Table of `tokens.parquet`, only if the tokens were revealed.
        limits: See `write_report`.
        groups: Of `groups.parquet`, where the texts have groups.
        spans: Of `spans.parquet`, where spans were given.
    """
    cut = Records.of(records, results.decisions.attack)
    template = (files("ltmia.report") / "templates" / "report.js").read_text("utf-8")
    return (
        template_environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            words=words,
            order=words.attack_order(results),
            summary=summarise(results, limits),
            cautions=words.cautions(results),
            observers=words.observer_lines(results),
            extraction=extraction_words,
            extraction_rows=extraction_words.extraction_rows(results),
            continued_rows=extraction_words.continued_rows(results),
            canaries=canary_words,
            canary_rows=canary_words.canary_rows(results),
            secrets=secret_words.secret_sides(results),
            exposed=secret_words.most_exposed(spans),
            advice=advise(results, cut),
            reasons=_reasons(results),
            figures=_figures(results, records),
            lengths=length_slices(cut),
            groups=group_slices(cut, results, groups),
            n_groups=len(set(cut.asked_groups)),
            helps=json.loads((files("ltmia.report") / "what_helps.json").read_text("utf-8")),
            data=embedded_json(page_data(records, tokens, results.decisions.attack)),
            script=Markup(template),  # noqa: S704  our own
            script_hash=base64.b64encode(sha256(template.encode()).digest()).decode(),
        )
    )


@cache
def template_environment() -> Environment:
    """Return what renders the pages, made once: strings are escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("ltmia.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["figure"] = number
    environment.filters["signed"] = partial(number, signed=True)
    environment.filters["number"] = _number
    environment.filters["bits"] = whole_bits
    environment.filters["unmatched"] = unmatched
    environment.filters["sentence"] = _sentence
    environment.filters["short"] = lambda text: text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
    return environment


@pass_context
def _sentence(context: Context, text: str) -> Markup:
    """Write a sentence for the page: intervals stay on one line, and names between backticks are set as code.

    Options of a run that was begun on the command line get their flags.
    """
    unbroken = INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), text)
    named = partial(_named, context.get("results"))
    return Markup(NAME.sub(lambda found: f"<code>{named(found[1])}</code>", str(escape(unbroken))))  # noqa: S704  escaped


def _named(results: Any, name: str) -> str:
    option, _, value = name.partition("=")
    if (
        not isinstance(results, Results)
        or option not in results.settings
        or results.command.partition(" ")[0] != PROGRAM
    ):
        return name
    return f"{flag_of(option)} {value}".removesuffix("True").strip()


def labelled_scores(records: pa.Table) -> dict[str, tuple[Scores, Scores]]:
    """Return member and non-member scores by attack; empty without labels."""
    labels = np.array(records["label"].to_pylist(), np.float64)
    scores = {}
    for column in records.column_names:
        if column.startswith("score_") and (labels == 1).any():
            values = records[column].to_numpy().astype(np.float64)
            scores[column.removeprefix("score_")] = (values[labels == 1], values[labels == 0])
    return scores


def chosen_curves(results: Results, records: pa.Table) -> dict[str, tuple[Scores, Scores]]:
    """Return the scores of the attacks to draw: the deciding one, the strongest others, and the control."""
    labelled = labelled_scores(records)
    names = [results.decisions.attack, *(name for name in words.attack_order(results) if name != words.CONTROL)]
    chosen = list(dict.fromkeys(name for name in names if name in labelled))[:N_CURVES]
    if words.CONTROL in labelled:
        chosen = [*(name for name in chosen if name != words.CONTROL), words.CONTROL]
    return {name: labelled[name] for name in chosen}


def _figures(results: Results, records: pa.Table) -> dict[str, dict[str, Any]]:
    """Draw the figures that the data allow, each with a text that describes it."""
    decisions = results.decisions
    labels = np.array(records["label"].to_pylist(), np.float64)
    scores = records[f"score_{decisions.attack}"].to_numpy().astype(np.float64)
    p_values = records["p_value"].to_numpy().astype(np.float64)
    asked = "members" if results.kind == "audit" else "candidates"
    kinds = {asked: scores[labels != 0], "non-members": scores[labels == 0]}
    kinds = {kind: values for kind, values in kinds.items() if len(measurable(values))}
    flagged = scores[np.array(records["flagged"].to_pylist(), np.bool_)]
    drawn = {}
    curves = chosen_curves(results, records)
    if curves and all(len(kind) for kind in next(iter(curves.values()))):
        drawn["roc"] = _figure(figures.roc_figure(curves, words.CONTROL), _roc_words(results))
    if kinds:
        drawing = figures.distribution_figure(kinds, decisions.attack, float(flagged.min()) if len(flagged) else None)
        drawn["scores"] = _figure(drawing, _distribution_words(kinds, decisions.attack))
    judged = {asked: p_values[labels != 0], "non-members": p_values[labels == 0]}
    judged = {kind: values for kind, values in judged.items() if len(measurable(values))}
    if judged:
        drawing = figures.calibration_figure(judged, decisions.smallest_p)
        drawn["calibration"] = _figure(drawing, _calibration_words(judged))
    return drawn


def _figure(drawing: str, alternative: str) -> dict[str, Any]:
    return {"svg": Markup(drawing), "alt": alternative}  # noqa: S704  drawn by us, letters escaped by matplotlib


def _roc_words(results: Results) -> str:
    attack = results.attacks.get(results.decisions.attack)
    said = "ROC curves on logarithmic axes."
    for fpr, name in words.FPR_NAMES.items():
        if attack is not None and attack.tpr(fpr).value is not None:
            found = percent(attack.tpr(fpr).value)
            said += f" At a false-positive rate of {name}, {results.decisions.attack} finds {found} of the members."
    return said


def _distribution_words(kinds: Mapping[str, Scores], attack: str) -> str:
    medians = ", ".join(f"{np.median(measurable(values)):.3g} for {kind}" for kind, values in kinds.items())
    return f"Distribution of the scores of {attack}; the median is {medians}."


def _calibration_words(p_values: Mapping[str, Scores]) -> str:
    shares = " and ".join(f"{percent((measurable(v) <= 0.1).mean())} of {kind}" for kind, v in p_values.items())
    return f"Share of texts with a p-value up to each level; up to 0.1 it is {shares}."


def _reasons(results: Results) -> list[str]:
    """Collect the reasons for missing figures, each once; the table refers to them by number."""
    shown = [m for a in results.attacks.values() for m in (a.auc, *(a.tpr(fpr) for fpr in words.FPR_NAMES))]
    missing = [m.reason for m in shown if m.value is None]
    return list(dict.fromkeys(reason or "not measured" for reason in missing))


def _number(value: float | Measure | None) -> str:
    """Write a number to three significant digits."""
    value = value.value if isinstance(value, Measure) else value
    return "–" if value is None else f"{value:.3g}"
