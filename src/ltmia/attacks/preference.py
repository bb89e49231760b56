"""Attacks on preference pairs, after PREMIA (arXiv 2407.06443): a chosen and a rejected completion of one prompt.

The reference is the policy that preference training started from. Every function reads the sum of
D_t = log p_T - log p_R over the tokens of both completions, which is what the loss of DPO (arXiv 2305.18290) reads.
"""

import numpy as np
from jaxtyping import Float64

LogRatios = Float64[np.ndarray, " pairs"]
"""Sums of D_t over one completion of each pair, in nats; NaN where it cannot be scored."""


def pair(chosen: LogRatios, rejected: LogRatios) -> LogRatios:
    """Return the log-ratio of the chosen completion minus that of the rejected one: DPO trains it up."""
    return chosen - rejected


def chosen_alone(chosen: LogRatios, rejected: LogRatios) -> LogRatios:  # noqa: ARG001  reads one of the two
    """Return the log-ratio of the chosen completion."""
    return chosen


def rejected_alone(chosen: LogRatios, rejected: LogRatios) -> LogRatios:  # noqa: ARG001  reads one of the two
    """Return minus the log-ratio of the rejected completion: DPO trains its log-ratio down."""
    return -rejected
