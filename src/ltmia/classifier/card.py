"""The model card of a classifier: training data, results and limits."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

_CARD = """\
---
license: apache-2.0
tags: [membership-inference, privacy, ltmia]
---
# Membership classifier `{{ network }}` on `{{ feature_version }}` features

{% if feature_version == "lite" -%}
{{ n_parameters }} parameters. It reads what a server of log-probabilities can give: log-probability and rank of each
token under a fine-tuned language model and under its pretrained base, and the log-probabilities of the tokens each of
them finds most likely. It gives each text one logit, higher for texts the model was fine-tuned on.
{%- else -%}
{{ n_parameters }} parameters. It reads per-token statistics of a fine-tuned language model against its pretrained
base and gives each text one logit, higher for texts the model was fine-tuned on.
{%- endif %}{% if lean %} Beside what it learned, each unit of a text's mean excess
counts {{ "%g" | format(lean) }} logits.
{%- endif %}

## Trained on

{{ trained_on | length }} combinations (base, corpus, regime); members of each were drawn separately, by document:
{% for name in trained_on %}
- {{ name }}
{%- endfor %}

## Results

{% if results -%}
AUC and TPR at two FPRs on combinations whose architecture and corpus it never saw, beside the best published attack. A
dash where there are too few non-members for the FPR.

| combination | AUC | best published attack | TPR@1 % | best published attack | TPR@0.1 % | best published attack |
|---|---|---|---|---|---|---|
{% for name, row in results | dictsort -%}
| {{ name }} |
{%- for figure in ("auc", "tpr_at_0.01", "tpr_at_0.001") %} {{ row.get(figure, "–") }} |
{{- " " ~ row.get("best_baseline_" ~ figure, "–") }} |
{%- endfor %}
{% endfor %}
{%- else -%}
Not evaluated.
{%- endif %}

## Limits

The training data is listed above; on a target unlike all of it, the audit says that it extrapolates. It learns from all
texts of an audit how fine-tuning changed tokens in general, so it needs many texts: {% if feature_version == "lite" -%}
some hundreds of candidates; fewer were
not tried with it.
{%- else -%}
with 40 candidates half of its gain over hand-made attacks is
left, with 500 all of it.
{%- endif %} A logit is evidence, not proof, and says nothing about texts seen before fine-tuning.
"""


def model_card(config: Mapping[str, Any], n_parameters: int) -> str:
    """Render the card of a classifier from its config."""
    environment = Environment(autoescape=False, keep_trailing_newline=True, undefined=StrictUndefined)  # noqa: S701  Markdown, our own strings
    return environment.from_string(_CARD).render(**config, n_parameters=f"{n_parameters:,}")
