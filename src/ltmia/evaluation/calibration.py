"""Decisions of an audit: splits non-members for calibration, judges records and groups, and flags them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ltmia.evaluation.conformal import RecordDecisions, fewest_flags, judge
from ltmia.evaluation.group_decisions import GroupDecisions, judge_groups
from ltmia.evaluation.intervals import proportion
from ltmia.evaluation.results import Decisions
from ltmia.evaluation.roc import Scores
from ltmia.evaluation.section import Measure


def split_halves(
    n: int, groups: Int64[np.ndarray, " _"] | None, seed: int
) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
    """Split rows at random into a calibration half and the rest; groups are not divided.

    Groups are taken in random order as long as they fit into the half, so a large one ends up in the rest. A single
    group calibrates as a whole, and the rest is empty.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) if groups is None else groups
    names, sizes = np.unique(labels, return_counts=True)
    room, taken = (n + 1) // 2, np.zeros(len(names), np.bool_)
    for group in rng.permutation(len(names)):
        if sizes[group] <= room:
            taken[group] = True
            room -= sizes[group]
    if not taken.any():
        taken[:] = True
    inside = np.isin(labels, names[taken])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


SideGroups = tuple[Int64[np.ndarray, " _"] | None, Int64[np.ndarray, " _"] | None]
"""Groups of the texts to judge and of the non-members; None for a side without groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditDecisions:
    """Decisions on members and on the non-members that were left out of calibration."""

    members: RecordDecisions
    held_out: RecordDecisions
    held_out_rows: Int64[np.ndarray, " _"]
    """Rows of the non-members judged."""
    summary: Decisions
    groups: GroupDecisions | None = None
    """Decisions on whole groups of members; None without groups."""


def judge_audit(
    members: Scores,
    nonmembers: Scores,
    *,
    attack: str,
    fdr: float,
    groups: SideGroups = (None, None),
    in_groups: Scores | None = None,
    seed: int = 0,
) -> AuditDecisions:
    """Judge members together with one half of the non-members against the other half.

    The judged non-members show the actual error: their share of all flags is the realised false discovery proportion.
    Groups are judged by the scores `in_groups`, or by those of the members when None.
    """
    judged_groups, nonmember_groups = groups
    calibration, held_out = split_halves(len(nonmembers), nonmember_groups, seed)
    scores = np.concatenate([members, nonmembers[held_out]])
    judged = judge(scores, nonmembers[calibration], fdr)
    n = len(members)
    false_flags, flags = int(judged.flagged[n:].sum()), int(judged.flagged.sum())
    found = None
    if judged_groups is not None and nonmember_groups is not None:
        whole = members if in_groups is None else in_groups
        found = judge_groups(whole, judged_groups, nonmembers[calibration], nonmember_groups[calibration], fdr, seed)
    nothing = "nothing flagged" if len(held_out) else "the non-members are one group, which calibrates as a whole"
    summary = _summary(
        judged,
        n,
        nonmembers[calibration],
        None if nonmember_groups is None else nonmember_groups[calibration],
        attack=attack,
        fdr=fdr,
        realized_fdp=proportion(false_flags, flags) if flags and len(held_out) else Measure(reason=nothing),
    )
    return AuditDecisions(
        members=_part(judged, slice(0, n)),
        held_out=_part(judged, slice(n, None)),
        held_out_rows=held_out,
        summary=_with_groups(summary, found, fdr),
        groups=found,
    )


def judge_candidates(
    candidates: Scores,
    nonmembers: Scores,
    *,
    attack: str,
    fdr: float,
    groups: SideGroups = (None, None),
    in_groups: Scores | None = None,
    seed: int = 0,
) -> AuditDecisions:
    """Judge candidates of unknown membership against all known non-members, all of which calibrate.

    Groups are judged by the scores `in_groups`, or by those of the candidates when None.
    """
    judged_groups, nonmember_groups = groups
    judged = judge(candidates, nonmembers, fdr)
    found = None
    if judged_groups is not None and nonmember_groups is not None:
        whole = candidates if in_groups is None else in_groups
        found = judge_groups(whole, judged_groups, nonmembers, nonmember_groups, fdr, seed)
    summary = _summary(
        judged,
        len(candidates),
        nonmembers,
        nonmember_groups,
        attack=attack,
        fdr=fdr,
        realized_fdp=Measure(reason="no non-member was left to judge: all calibrate"),
    )
    nothing = np.empty(0)
    return AuditDecisions(
        members=judged,
        held_out=RecordDecisions(p_values=nothing, q_values=nothing, flagged=nothing.astype(np.bool_)),
        held_out_rows=nothing.astype(np.int64),
        summary=_with_groups(summary, found, fdr),
        groups=found,
    )


def _summary(
    judged: RecordDecisions,
    n_asked: int,
    calibration: Scores,
    calibration_groups: Int64[np.ndarray, " _"] | None,
    *,
    attack: str,
    fdr: float,
    realized_fdp: Measure,
) -> Decisions:
    """Summarise the decisions. The first `n_asked` rows are members or candidates, the rest judged non-members."""
    usable = ~np.isnan(calibration)
    smallest_p = 1.0 / (int(usable.sum()) + 1)
    n_tests = int((~np.isnan(judged.p_values)).sum())
    return Decisions(
        attack=attack,
        fdr=fdr,
        n_flagged=int(judged.flagged[:n_asked].sum()),
        n_judged=int((~np.isnan(judged.p_values[:n_asked])).sum()),
        n_calibration=int(usable.sum()),
        smallest_p=smallest_p,
        fewest_flags=fewest_flags(n_tests, smallest_p, fdr),
        n_calibration_groups=None if calibration_groups is None else len(np.unique(calibration_groups[usable])),
        realized_fdp=realized_fdp,
    )


def _with_groups(summary: Decisions, groups: GroupDecisions | None, fdr: float) -> Decisions:
    if groups is None:
        return summary
    fewest = fewest_flags(len(groups.numbers), groups.smallest_p, fdr)
    return summary.model_copy(update={"n_groups_judged": len(groups.numbers), "fewest_group_flags": fewest})


def _part(judged: RecordDecisions, rows: slice) -> RecordDecisions:
    return RecordDecisions(p_values=judged.p_values[rows], q_values=judged.q_values[rows], flagged=judged.flagged[rows])
