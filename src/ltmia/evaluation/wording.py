"""Writes figures in one way for the terminal, the report, the gate and evaluations."""

from ltmia.evaluation.results import Measure


def figure(measure: Measure, *, signed: bool = False) -> str:
    """Write a figure with its 95 % interval, such as "0.955 [0.930, 0.971]"; why there is none if there is none.

    Args:
        measure: The figure.
        signed: Write the sign of positive numbers too, as for differences.
    """
    if measure.value is None:
        return measure.reason or "not measured"
    value = number(measure.value, signed=signed)
    if measure.low is None or measure.high is None:
        return value
    return f"{value} [{number(measure.low, signed=signed)}, {number(measure.high, signed=signed)}]"


def number(value: float, *, signed: bool = False) -> str:
    """Write a figure alone: three decimals."""
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def percent(share: float | None) -> str:
    """Write a share as people read it: two digits, never "0 %" for something nor "100 %" for less than all."""
    if share is None:
        return "–"
    found = 100 * share
    if 99 < found < 100:
        return f"{min(found, 99.9):.1f} %"
    return f"{found:.0f} %" if found >= 10 or found == 0 else f"{found:.2g} %"


def p_value(p: float) -> str:
    """Write a p-value; one below a thousandth is not told apart from others."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
