"""From scores to decisions: conformal p-values, q-values, and which records are flagged at a false discovery rate."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import false_discovery_control

from ltmia.evaluation.intervals import proportion
from ltmia.evaluation.results import Decisions, Measure
from ltmia.evaluation.roc import Scores, measurable


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDecisions:
    """Per-record outcome, in the order of the scores judged."""

    p_values: Float64[np.ndarray, " _"]
    q_values: Float64[np.ndarray, " _"]
    flagged: Bool[np.ndarray, " _"]


def conformal_p_values(scores: Scores, calibration: Scores) -> Float64[np.ndarray, " _"]:
    """Return p = (1 + #{calibration >= s}) / (n + 1) for each score; NaN for an unscorable text.

    Valid when a non-member's score is exchangeable with those of the calibration non-members: then P(p <= a) <= a.
    Ties count against the record (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279).
    """
    ordered = np.sort(measurable(calibration))
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p_values = (1.0 + at_least) / (len(ordered) + 1.0)
    return np.where(np.isnan(scores), np.nan, p_values)


def q_values(p_values: Float64[np.ndarray, " _"]) -> Float64[np.ndarray, " _"]:
    """Return Benjamini-Hochberg adjusted p-values; NaN stays NaN and is not counted as a test."""
    adjusted = np.full(len(p_values), np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = false_discovery_control(p_values[tested], method="bh")
    return adjusted


def judge(scores: Scores, calibration: Scores, fdr: float) -> RecordDecisions:
    """Judge candidates against known non-members and flag those whose q-value is at most `fdr`.

    Benjamini-Hochberg on conformal p-values with one shared calibration set holds the false discovery rate when
    candidates are independent of each other (Bates et al. 2023, theorem 6).
    """
    p = conformal_p_values(scores, calibration)
    q = q_values(p)
    return RecordDecisions(p_values=p, q_values=q, flagged=np.nan_to_num(q, nan=np.inf) <= fdr)


def judge_groups(
    scores: Scores,
    groups: Int64[np.ndarray, " _"],
    calibration: Scores,
    calibration_groups: Int64[np.ndarray, " _"],
    fdr: float,
) -> tuple[Int64[np.ndarray, " _"], RecordDecisions]:
    """Judge whole groups (patients, authors, documents) by the mean score of their texts.

    Each group counts once, against the means of the calibration non-members' groups: then texts of one group need not
    be independent. Groups of candidates and of non-members must be alike, in their number of texts too.

    Returns:
        The numbers of the groups judged, and the decision on each.
    """
    names, means = _group_means(scores, groups)
    _, against = _group_means(calibration, calibration_groups)
    return names, judge(means, against, fdr)


def _group_means(scores: Scores, groups: Int64[np.ndarray, " _"]) -> tuple[Int64[np.ndarray, " _"], Scores]:
    usable = ~np.isnan(scores)
    names, index, counts = np.unique(groups[usable], return_inverse=True, return_counts=True)
    return names, np.bincount(index, scores[usable], minlength=len(names)) / np.maximum(counts, 1)


def split_halves(
    n: int, groups: Int64[np.ndarray, " _"] | None, seed: int
) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
    """Split rows into two random halves; a group is never divided."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) if groups is None else groups
    names, sizes = np.unique(labels, return_counts=True)
    order = rng.permutation(len(names))
    first = names[order[np.cumsum(sizes[order]) <= (n + 1) // 2]]
    inside = np.isin(labels, first)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditDecisions:
    """Decisions on members and on the non-members that were left out of calibration."""

    members: RecordDecisions
    held_out: RecordDecisions
    held_out_rows: Int64[np.ndarray, " _"]
    """Rows of the non-members judged."""
    summary: Decisions
    flagged_groups: Int64[np.ndarray, " _"] | None = None
    """Numbers of the members' groups that are flagged as a whole; None without groups."""


def judge_audit(
    members: Scores,
    nonmembers: Scores,
    *,
    attack: str,
    fdr: float,
    member_groups: Int64[np.ndarray, " _"] | None = None,
    nonmember_groups: Int64[np.ndarray, " _"] | None = None,
    seed: int = 0,
) -> AuditDecisions:
    """Judge members together with one half of the non-members against the other half.

    The half that is judged shows what became of the promise: its share among all flags is the false discovery
    proportion that was realised.
    """
    calibration, held_out = split_halves(len(nonmembers), nonmember_groups, seed)
    scores = np.concatenate([members, nonmembers[held_out]])
    judged = judge(scores, nonmembers[calibration], fdr)
    n = len(members)
    false_flags, flags = int(judged.flagged[n:].sum()), int(judged.flagged.sum())
    summary = _summary(
        judged,
        n,
        nonmembers[calibration],
        None if nonmember_groups is None else nonmember_groups[calibration],
        attack=attack,
        fdr=fdr,
        realized_fdp=proportion(false_flags, flags) if flags else Measure(reason="nothing flagged"),
    )
    flagged_groups = None
    if member_groups is not None and nonmember_groups is not None:
        names, groups = judge_groups(
            members, member_groups, nonmembers[calibration], nonmember_groups[calibration], fdr
        )
        flagged_groups = names[groups.flagged]
    return AuditDecisions(
        members=_part(judged, slice(0, n)),
        held_out=_part(judged, slice(n, None)),
        held_out_rows=held_out,
        summary=summary,
        flagged_groups=flagged_groups,
    )


def judge_candidates(
    candidates: Scores,
    nonmembers: Scores,
    *,
    attack: str,
    fdr: float,
    candidate_groups: Int64[np.ndarray, " _"] | None = None,
    nonmember_groups: Int64[np.ndarray, " _"] | None = None,
) -> AuditDecisions:
    """Judge candidates of unknown membership against all known non-members; none is left to check the promise on."""
    judged = judge(candidates, nonmembers, fdr)
    flagged_groups = None
    if candidate_groups is not None and nonmember_groups is not None:
        names, groups = judge_groups(candidates, candidate_groups, nonmembers, nonmember_groups, fdr)
        flagged_groups = names[groups.flagged]
    nothing = np.empty(0)
    return AuditDecisions(
        members=judged,
        held_out=RecordDecisions(p_values=nothing, q_values=nothing, flagged=nothing.astype(np.bool_)),
        held_out_rows=nothing.astype(np.int64),
        summary=_summary(
            judged,
            len(candidates),
            nonmembers,
            nonmember_groups,
            attack=attack,
            fdr=fdr,
            realized_fdp=Measure(reason="no non-member was left to judge: all calibrate"),
        ),
        flagged_groups=flagged_groups,
    )


def _summary(
    judged: RecordDecisions,
    n_asked: int,
    calibration: Scores,
    groups: Int64[np.ndarray, " _"] | None,
    *,
    attack: str,
    fdr: float,
    realized_fdp: Measure,
) -> Decisions:
    """Sum up; the first `n_asked` of those judged are asked about, the rest show what became of the promise."""
    usable = ~np.isnan(calibration)
    smallest_p = 1.0 / (int(usable.sum()) + 1)
    n_tests = int((~np.isnan(judged.p_values)).sum())
    # Benjamini-Hochberg flags k records whose p is the smallest possible if that is at most k fdr / tests.
    fewest = math.ceil(n_tests * smallest_p / fdr - 1e-9) if fdr else n_tests + 1
    return Decisions(
        attack=attack,
        fdr=fdr,
        n_flagged=int(judged.flagged[:n_asked].sum()),
        n_judged=int((~np.isnan(judged.p_values[:n_asked])).sum()),
        n_calibration=int(usable.sum()),
        smallest_p=smallest_p,
        fewest_flags=max(fewest, 1) if fewest <= n_tests else None,
        n_calibration_groups=None if groups is None else len(np.unique(groups[usable])),
        realized_fdp=realized_fdp,
    )


def _part(judged: RecordDecisions, rows: slice) -> RecordDecisions:
    return RecordDecisions(p_values=judged.p_values[rows], q_values=judged.q_values[rows], flagged=judged.flagged[rows])
