"""ROC, AUC and TPR at a given FPR. Scores are float64, higher for members; NaN is left out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

Scores = Float64[np.ndarray, " _"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RocCurve:
    """Points of the curve from (0, 0) to (1, 1), one per distinct score."""

    fpr: Float64[np.ndarray, " _"]
    tpr: Float64[np.ndarray, " _"]


def roc_curve(members: Scores, nonmembers: Scores) -> RocCurve:
    """Return the share of members and of non-members at or above each threshold, thresholds falling."""
    members, nonmembers = measurable(members), measurable(nonmembers)
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    return RocCurve(
        fpr=np.concatenate([[0.0], share_at_or_above(nonmembers, thresholds)]),
        tpr=np.concatenate([[0.0], share_at_or_above(members, thresholds)]),
    )


def auc(members: Scores, nonmembers: Scores) -> float:
    """Return the probability that a random member outscores a random non-member, ties counted half."""
    members, nonmembers = measurable(members), measurable(nonmembers)
    n, m = len(members), len(nonmembers)
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.concatenate([members, nonmembers]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def threshold_at_fpr(nonmembers: Scores, fpr: float) -> float:
    """Return the lowest threshold with at most a share `fpr` of the non-members above it."""
    ordered = np.sort(measurable(nonmembers))[::-1]
    allowed = int(np.floor(fpr * len(ordered) + 1e-9))
    return float(ordered[allowed]) if allowed < len(ordered) else -np.inf


def tpr_at_fpr(members: Scores, nonmembers: Scores, fpr: float) -> float:
    """Return the largest true-positive rate whose false-positive rate is at most `fpr`; never interpolated."""
    members = measurable(members)
    if not len(members) or not len(measurable(nonmembers)):
        return float("nan")
    return float((members > threshold_at_fpr(nonmembers, fpr)).mean())


def share_at_or_above(scores: Scores, thresholds: Scores) -> Float64[np.ndarray, " _"]:
    """Return, for each threshold, the share of scores at or above it."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return (len(scores) - below) / max(len(scores), 1)


def measurable(scores: Scores) -> Scores:
    """Leave out unscorable texts."""
    return scores[~np.isnan(scores)]
