"""The page of a comparison: what changed from one audit to the other, in figures, by group and by record."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from ltmia.evaluation.comparison import Answer, Comparison
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.summary import Status
from ltmia.evaluation.wording import figure
from ltmia.report.tables import Table, TablePage

VERDICTS: Mapping[Answer, tuple[Status, str]] = {
    "yes": ("passed", "The second gives less away"),
    "no": ("failed", "The second gives more away"),
    "cannot tell": ("inconclusive", "Cannot tell"),
}
MOST_ROWS = 200
"""Largest number of rows of a table; the others are only counted."""

Audit = tuple[Results, pa.Table]
"""Results and records."""


class _Member(NamedTuple):
    """One member in both audits."""

    id: str
    group: str | None
    before: bool
    after: bool


def comparison_page(first: Audit, second: Audit, comparison: Comparison) -> TablePage:
    """Lay out a comparison.

    Args:
        first: Results and records of the first audit.
        second: Results and records of the second audit, in the same order of texts.
        comparison: Comparison of these two.
    """
    status, word = VERDICTS[comparison.lower_leakage]
    members = list(_members(first[1], second[1]))
    n_new = sum(member.after and not member.before for member in members)
    n_gone = sum(member.before and not member.after for member in members)
    return TablePage(
        kind="comparison",
        title="Two audits compared",
        subject=f"{first[0].target.source} → {second[0].target.source}",
        status=status,
        word=word,
        points=(
            comparison.sentence,
            *comparison.subjects,
            f"{n_gone} members are identified in the first audit only, {n_new} in the second only.",
        ),
        tables=(_figures(first[0], second[0], comparison), _groups(members), _records(members)),
    )


def _figures(first: Results, second: Results, comparison: Comparison) -> Table:
    before, after = first.attacks[comparison.attack], second.attacks[comparison.attack]
    rows = [("AUC", figure(before.auc), figure(after.auc), figure(comparison.auc, signed=True))]
    rows += [
        (
            f"TPR at an FPR of {fpr}",
            _or_dash(before.tpr(fpr)),
            _or_dash(after.tpr(fpr)),
            figure(change, signed=True),
        )
        for fpr, change in comparison.tpr_at_fpr.items()
    ]
    return Table(
        title="Figures",
        note=f"By {comparison.attack}, with 95 % intervals; the change is that of the same texts.",
        head=("Figure", "First", "Second", "Change"),
        rows=rows,
    )


def _or_dash(measure: Measure) -> str:
    """Write a figure; if it is missing, the column of changes says why."""
    return "–" if measure.value is None else figure(measure)


def _members(first: pa.Table, second: pa.Table) -> Iterator[_Member]:
    columns = [first[name].to_pylist() for name in ("id", "group", "label", "flagged")]
    for id_, group, label, before, after in zip(*columns, second["flagged"].to_pylist(), strict=True):
        if label == 1:
            yield _Member(str(id_), group, bool(before), bool(after))


def _groups(members: Sequence[_Member]) -> Table:
    groups: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        if member.group is not None:
            groups[member.group].append(member)
    counted = [
        (name, len(of), sum(member.before for member in of), sum(member.after for member in of))
        for name, of in groups.items()
    ]
    counted.sort(key=lambda row: (-row[3], -row[2], row[0]))
    return Table(
        title="Groups",
        note="Members of each group (a person, a document), and how many of them are identified."
        + _left_out(len(counted)),
        head=("Group", "Members", "Identified in the first", "Identified in the second"),
        rows=[tuple(map(str, row)) for row in counted[:MOST_ROWS]],
    )


def _records(members: Sequence[_Member]) -> Table:
    changed = [member for member in members if member.before != member.after]
    return Table(
        title="Records",
        note="Members that are identified in one of the two audits only." + _left_out(len(changed)),
        head=("Record", "First", "Second"),
        rows=[
            (member.id, *("identified" if found else "–" for found in (member.before, member.after)))
            for member in changed[:MOST_ROWS]
        ],
    )


def _left_out(n: int) -> str:
    return f" The first {MOST_ROWS} of {n}." if n > MOST_ROWS else ""
