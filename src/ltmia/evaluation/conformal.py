"""Conformal p-values, q-values, and flags at a false discovery rate."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import false_discovery_control

from ltmia.evaluation.roc import Scores, measurable


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDecisions:
    """P-value, q-value and flag of each record, in the order of the scores."""

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
    """Judge records against known non-members, and flag those whose q-value is at most `fdr`.

    Benjamini-Hochberg on conformal p-values with one shared calibration set holds the false discovery rate when
    candidates are independent of each other (Bates et al. 2023, theorem 6).
    """
    return flag(conformal_p_values(scores, calibration), fdr)


def flag(p_values: Float64[np.ndarray, " _"], fdr: float) -> RecordDecisions:
    """Flag records whose q-value is at most `fdr`; NaN does not count as a test."""
    q = q_values(p_values)
    return RecordDecisions(p_values=p_values, q_values=q, flagged=np.nan_to_num(q, nan=np.inf) <= fdr)


def fewest_flags(n_tests: int, smallest_p: float, fdr: float) -> int | None:
    """Return how many tests must have the smallest possible p-value before any is flagged; None if no number is enough.

    Benjamini-Hochberg flags k tests that have the smallest possible p-value if this is at most k fdr / tests.
    """
    fewest = max(math.ceil(n_tests * smallest_p / fdr - 1e-9), 1) if fdr else n_tests + 1
    return fewest if fewest <= n_tests else None
