"""Attacks that count positions at which the target beats its reference: EZ-MIA and WBC."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ltmia.attacks.evidence import TextEvidence, reads
from ltmia.errors import ConfigError

WBC_WINDOWS = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
"""Windows of the released code."""
WBC_EQ12 = tuple(round(2 * 20 ** ((k - 1) / 9)) for k in range(1, 11))
"""Windows by equation 12 of the paper, which the released code does not use."""

EZ_NO_LOSS = 1e20
"""Factor for a text with N = 0: its score is this times (1 + P), above every ratio P / N."""
EZ_NO_ERROR = 1e30
"""Score of a text that the target predicts without any error: the strongest sign of membership."""


@reads("target_logp", "reference_logp", "target_rank")
def ez_mia(evidence: TextEvidence, rule: Literal["paper", "published_code"] = "paper") -> float:
    """Return P / N: the sum of gains in log-probability over that of drops, at the target's errors (arXiv 2601.12104).

    Error positions are those at which the target prefers another token to the true one: its rank is above 1, so a tie
    for first place is not an error. The first scored position is left out. P sums max(D_t, 0) over them, N sums
    max(-D_t, 0).

    Args:
        evidence: One text.
        rule: "paper" ranks texts without errors highest, then texts with N = 0 by P, then the others by P / N; the
            first two get large finite scores. "published_code" gives 0, the lowest score, to both and to texts with a
            single error position, although these are the strongest members.
    """
    errors = evidence.log_ratio[1:][evidence.tokens.target_rank[1:] > 1]
    gain = float(np.maximum(errors, 0).sum())
    lost = float(np.maximum(-errors, 0).sum())
    if rule == "published_code":
        return gain / lost if len(errors) > 1 and lost > 0 else 0.0
    if not len(errors):
        return EZ_NO_ERROR
    return min(gain / lost, EZ_NO_LOSS) if lost > 0 else EZ_NO_LOSS * (1 + gain)


@reads("target_logp", "reference_logp")
def wbc(evidence: TextEvidence, windows: Sequence[int] = WBC_WINDOWS) -> float:
    """Return the share of sliding windows whose sum of D_t is above 0, averaged over widths (arXiv 2601.02751).

    Widths longer than the text are cut to its length, and each still counts.

    Raises:
        ConfigError: If there are no widths, or one is less than 1.
    """
    if not windows or min(windows) < 1:
        raise ConfigError(f"WBC windows {list(windows)}: expected one or more widths of at least 1, such as {WBC_EQ12}")
    log_ratio = evidence.log_ratio
    totals = np.concatenate([[0.0], np.cumsum(log_ratio)])
    widths = [min(width, len(log_ratio)) for width in windows]
    return float(np.mean([np.mean(totals[width:] > totals[:-width]) for width in widths]))
