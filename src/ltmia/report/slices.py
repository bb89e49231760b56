"""Splits an audit's results by length of texts and by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.evaluation.controls import length_bucket_rows
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import auc
from ltmia.evaluation.section import Measure

N_RESAMPLES = 300
MOST_GROUPS = 15
"""Largest number of groups to show; those whose members stand out most come first."""
FEWEST_TEXTS = 2
"""Fewest members of a group to be shown, unless it is flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One part of the texts."""

    name: str
    n_members: int
    n_nonmembers: int
    n_flagged: int
    """Number of flagged members."""
    auc: Measure
    """AUC of the slice's members against its non-members; a group's members are compared with all non-members."""
    flagged_whole: bool = False
    """Whether the group was flagged as a whole."""
    whole: Mapping[str, Any] | None = None
    """The group's row of `groups.parquet`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Columns of the records that slices need."""

    labels: np.ndarray
    scores: np.ndarray
    n_tokens: np.ndarray
    flagged: np.ndarray
    groups: Sequence[str | None]

    @classmethod
    def of(cls, records: pa.Table, attack: str) -> "Records":
        """Read the columns from `records.parquet`; without labels, candidates count as members."""
        labels = np.array([1 if label is None else label for label in records["label"].to_pylist()], np.int64)
        return cls(
            labels=labels,
            scores=records[f"score_{attack}"].to_numpy().astype(np.float64),
            n_tokens=records["n_tokens"].to_numpy(),
            flagged=np.array(records["flagged"].to_pylist(), np.bool_),
            groups=records["group"].to_pylist(),
        )

    @property
    def asked_groups(self) -> list[str]:
        """Group of each member that has one."""
        return [group for row, group in enumerate(self.groups) if group is not None and self.labels[row] == 1]


def length_slices(records: Records) -> list[Slice]:
    """Cut the scorable texts into up to four parts of similar length."""
    scored = np.flatnonzero(~np.isnan(records.scores))
    if not len(scored):
        return []
    return [_length_slice(records, scored[rows]) for rows in length_bucket_rows(records.n_tokens[scored])]


def group_slices(records: Records, results: Results, groups: pa.Table | None = None) -> list[Slice]:
    """Return the groups whose members stand out most from all non-members, flagged ones first, then large ones.

    Args:
        records: Of the audit.
        results: Of the audit.
        groups: Of `groups.parquet`, where there is one.
    """
    flagged = set(results.decisions.flagged_groups or ())
    of_group = {row["group"]: row for row in groups.to_pylist()} if groups is not None else {}
    members: dict[str, list[int]] = {}
    for row, group in enumerate(records.groups):
        if group is not None and records.labels[row] == 1:
            members.setdefault(group, []).append(row)
    nonmembers = records.scores[records.labels == 0]
    slices = [
        Slice(
            name=group,
            n_members=len(rows),
            n_nonmembers=0,
            n_flagged=int(records.flagged[rows].sum()),
            auc=_plain(auc(records.scores[rows], nonmembers)),
            flagged_whole=group in flagged,
            whole=of_group.get(group),
        )
        for group, rows in members.items()
        if len(rows) >= FEWEST_TEXTS or group in flagged
    ]
    slices.sort(key=lambda s: (not s.flagged_whole, -(s.auc.value or 0.0), -s.n_members, s.name))
    return slices[:MOST_GROUPS]


def _length_slice(records: Records, rows: np.ndarray) -> Slice:
    labels, scores, lengths = records.labels[rows], records.scores[rows], records.n_tokens[rows]
    members, nonmembers = scores[labels == 1], scores[labels == 0]
    span = f"{lengths.min()} to {lengths.max()}" if lengths.min() < lengths.max() else f"{lengths.min()}"
    return Slice(
        name=span,
        n_members=len(members),
        n_nonmembers=len(nonmembers),
        n_flagged=int((records.flagged[rows] & (labels == 1)).sum()),
        auc=measure_attack(members, nonmembers, n_resamples=N_RESAMPLES).auc,
    )


def _plain(value: float) -> Measure:
    return Measure(reason="nothing to compare") if np.isnan(value) else Measure(value=value)
