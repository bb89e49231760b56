"""Shows results in a notebook: compact HTML, and the ROC as matplotlib axes."""

from pathlib import Path

import pyarrow as pa
from jinja2 import Environment
from matplotlib.axes import Axes

from ltmia.errors import DataError
from ltmia.evaluation.audit_folder import REPORT_FILE
from ltmia.evaluation.results import Results
from ltmia.evaluation.summary import summarise
from ltmia.evaluation.wording import figure
from ltmia.report import words
from ltmia.report.figures import plot_roc
from ltmia.report.page import chosen_curves

COMPACT = """
<div style="font-family: system-ui, sans-serif; max-width: 46rem; line-height: 1.45">
<p style="font-size: 1.15em; margin: 0 0 .3em"><strong>{{ words.SIGNS[summary.status] }} {{ summary.word }}</strong></p>
{% if results.subject %}<p style="margin: .3em 0">{{ results.subject }}</p>{% endif %}
<ul style="margin: 0 0 .5em; padding-left: 1.2em">{% for point in summary.points %}<li>{{ point }}</li>{% endfor %}</ul>
{% if results.attacks %}
<table><thead><tr><th style="text-align: left">attack</th><th>AUC</th>
{%- for fpr in ("0.1", "0.01") %}<th>TPR at {{ words.FPR_NAMES[fpr] }} FPR</th>{% endfor %}</tr></thead><tbody>
{% for name in words.attack_order(results) %}{% set a = results.attacks[name] %}
<tr><td style="text-align: left">{{ name }}{{ " (control)" if name == words.CONTROL }}</td>
{%- for m in (a.auc, a.tpr("0.1"), a.tpr("0.01")) %}
<td>{{ figure(m) if m.value is not none else "–" }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody></table>
{% endif %}
{% for name, check in words.named_checks(results.validity) if check.status in ("warning", "failed") %}
<p style="margin: .3em 0"><strong>{{ words.LIGHTS[check.status].mark }} {{ name }}:</strong> {{ check.sentence }}</p>
{% endfor %}
<p style="margin: .3em 0; opacity: .75">{{ words.not_shown(results)[0] }} Full report: <code>{{ path }}</code></p>
</div>
"""


def results_html(results: Results, folder: Path) -> str:
    """Return compact HTML: verdict, attacks, and the checks that found a problem."""
    environment = Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(COMPACT).render(
        results=results, words=words, summary=summarise(results), figure=figure, path=folder / REPORT_FILE
    )


def roc_axes(results: Results, records: pa.Table, axes: Axes | None = None) -> Axes:
    """Draw the ROC of the deciding attack, the strongest others and the control.

    Args:
        results: What the audit found.
        records: Its records.
        axes: Where to draw; new axes of pyplot when None.

    Raises:
        DataError: If there are no labels to draw a ROC from.
    """
    curves = chosen_curves(results, records)
    if not curves:
        raise DataError(
            "no members are known, so there is no ROC; run an audit with members and non-members to get one"
        )
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots()[1]
    plot_roc(axes, curves, control=words.CONTROL)
    return axes
