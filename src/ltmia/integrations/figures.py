"""The figures of an audit, under the names that trackers and model cards use."""

from collections.abc import Mapping
from dataclasses import dataclass

from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of an audit."""

    name: str
    """Its keys in `results.json`, joined by slashes: `attacks/loss/auc`."""
    title: str
    """Name for people."""
    measure: Measure


def figures(results: Results) -> list[Figure]:
    """List the figures of an audit or a score, including those that could not be measured."""
    decisions = results.decisions
    found = [
        Figure(name=f"decisions/{name}", title=title, measure=Measure(value=float(count)))
        for name, title, count in (
            ("n_flagged", "Records that can be identified", decisions.n_flagged),
            ("n_judged", "Records judged", decisions.n_judged),
        )
    ]
    for name, attack in results.attacks.items():
        found.append(Figure(name=f"attacks/{name}/auc", title=f"AUC of {name}", measure=attack.auc))
        found += [
            Figure(name=f"attacks/{name}/tpr_at_fpr/{fpr}", title=f"TPR of {name} at an FPR of {fpr}", measure=measure)
            for fpr, measure in attack.tpr_at_fpr.items()
        ]
    if results.epsilon is not None:
        found.append(Figure(name="epsilon", title="Lower bound on epsilon", measure=results.epsilon))
    if results.kind == "score":
        test = results.set_test
        found.append(
            Figure(
                name="set_test/p_value",
                title="p-value of all candidates together",
                measure=Measure(value=test.p_value, reason=test.reason),
            )
        )
    return found


def measured(found: list[Figure]) -> Mapping[str, float]:
    """Return each figure that could be measured by its name, and its interval as `NAME_low` and `NAME_high`."""
    values = {}
    for figure in found:
        for suffix, value in (("", figure.measure.value), ("_low", figure.measure.low), ("_high", figure.measure.high)):
            if value is not None:
                values[figure.name + suffix] = value
    return values
