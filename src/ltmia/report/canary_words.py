"""What was measured with canaries, as lines and as the rows of a table."""

from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure, number
from ltmia.report.words import FPR_NAMES

SHOWN_FPR = "0.1"
"""False-positive rate of the table."""
HEAD = (
    "Copies",
    "Inserted",
    "Left out",
    "AUC",
    f"TPR at {FPR_NAMES[SHOWN_FPR]} FPR",
    "ε of all copies",
    "ε of one copy",
)


def canary_rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row for each number of copies, in the order of `HEAD`; none if the texts are no canaries."""
    return [
        (
            str(row.repeats),
            str(row.n_inserted),
            str(row.n_left_out),
            _shown(row.auc),
            _shown(row.tpr_at_fpr[SHOWN_FPR]),
            at_least(row.epsilon),
            at_least(row.epsilon_of_a_copy),
        )
        for row in ([] if results.canaries is None else results.canaries.by_repeats)
    ]


def canary_lines(results: Results) -> list[str]:
    """Say what stands beside the table: why figures are missing, the bound from natural texts, what was not checked."""
    found = results.canaries
    if found is None:
        return []
    missing: dict[str, list[str]] = {}
    for row in found.by_repeats:
        for measure in (row.auc, row.tpr_at_fpr[SHOWN_FPR], row.epsilon):
            if measure.value is None:
                missing.setdefault(measure.reason or "not measured", []).append(str(row.repeats))
    lines = [f"Copies {', '.join(rows)}: {reason}." for reason, rows in missing.items()]
    if (other := found.natural) is not None:
        said = at_least(other.epsilon) if other.epsilon.value is not None else f"no bound ({other.epsilon.reason})"
        lines.append(
            f"With texts of your own, {other.n_members} members and {other.n_nonmembers} non-members: ε {said}. That "
            "bound holds if they were drawn at random from one pool; the bounds from canaries hold by the coins."
        )
    if found.training_file == "missing":
        lines.append("The training file is no longer beside the key, so it was not checked that it holds the canaries.")
    if found.training_file == "recounted":
        lines.append("The training file was changed since; its canaries were counted again, and are those of the key.")
    return lines


def at_least(measure: Measure) -> str:
    """Write a lower bound."""
    return "n/a" if measure.value is None else f"≥ {number(measure.value)}"


def _shown(measure: Measure) -> str:
    return "n/a" if measure.value is None else figure(measure)
