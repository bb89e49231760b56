"""Attacks that count where the target beats its reference: EZ-MIA and the window vote WBC."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.likelihood import LOGP_FLOOR

WBC_WINDOWS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
"""Windows of the released code."""
WBC_EQ12 = tuple(round(2 * 20 ** ((k - 1) / 9)) for k in range(1, 11))
"""Windows by equation 12 of the paper, which the released code does not use."""

EZ_NO_LOSS = 1e6
"""Offset of a text without any loss among its error positions: above every ratio that has one."""
EZ_NO_ERROR = 1e12
"""Score of a text the target predicts without error: the strongest sign there is."""

RATIO_LIMIT = 1e3
"""Log-ratios are clipped here, so that one impossible token cannot make a score infinite."""


def ez_mia(evidence: TextEvidence, rule: Literal["paper", "published_code"] = "paper") -> float:
    """Return P / N: gains over losses of log-probability at the target's error positions (arXiv 2601.12104).

    Error positions are those where the target's most likely token is not the true one; the first scored position
    is left out. P sums max(D_t, 0) over them, N sums max(-D_t, 0).

    Args:
        evidence: One text.
        rule: Without errors, or with N = 0, the paper ranks a text strongest, in this order; the published code gives
            it 0, the lowest score, and also asks for two error positions.
    """
    tokens = evidence.tokens
    log_ratio = _log_ratio(evidence)[1:]
    if not len(log_ratio) or np.isnan(log_ratio).any():
        return np.nan
    errors = log_ratio[tokens.target_rank[1:] > 1]
    gain = float(np.maximum(errors, 0).sum())
    lost = float(np.maximum(-errors, 0).sum())
    if rule == "published_code":
        return gain / lost if len(errors) > 1 and lost > 0 else 0.0
    if not len(errors):
        return EZ_NO_ERROR
    return EZ_NO_LOSS + gain if lost == 0 else min(gain / lost, EZ_NO_LOSS)


def wbc(evidence: TextEvidence, windows: Sequence[int] = WBC_WINDOWS) -> float:
    """Return the share of sliding windows whose sum of D_t is above 0, mean over widths (arXiv 2601.02751).

    Widths beyond the text are cut to its length.
    """
    log_ratio = _log_ratio(evidence)
    if not len(log_ratio) or np.isnan(log_ratio).any():
        return np.nan
    totals = np.concatenate([[0.0], np.cumsum(log_ratio)])
    votes = []
    for window in windows:
        width = min(window, len(log_ratio))
        votes.append(float((totals[width:] - totals[:-width] > 0).mean()))
    return float(np.mean(votes))


def _log_ratio(evidence: TextEvidence) -> np.ndarray:
    """D_t in float64; where both models say "impossible" neither is better."""
    target = np.maximum(evidence.tokens.target_logp.astype(np.float64), LOGP_FLOOR)
    reference = np.maximum(evidence.tokens.reference_logp.astype(np.float64), LOGP_FLOOR)
    return np.clip(target - reference, -RATIO_LIMIT, RATIO_LIMIT)
