"""Writes figures in one way for the terminal, the report, the gate and evaluations."""

from collections.abc import Sequence

from ltmia.evaluation.section import Measure


def figure(measure: Measure, *, signed: bool = False) -> str:
    """Write a figure with its 95 % interval, such as "0.955 [0.930, 0.971]", or the reason why it is missing.

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


def whole_bits(measure: Measure) -> str:
    """Write an exposure with its 95 % interval in whole bits, such as "11 [8, 20]", or the reason why it is missing."""
    if measure.value is None or measure.low is None or measure.high is None:
        return measure.reason or "not measured"
    return f"{measure.value:.0f} [{measure.low:.0f}, {measure.high:.0f}]"


def unmatched(names: Sequence[str]) -> str:
    """Name the kinds of secrets that were looked for and not found."""
    return f"Nothing of these kinds is found in the texts to judge: {', '.join(names)}"


def number(value: float, *, signed: bool = False) -> str:
    """Write a figure alone: three decimals."""
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def percent(share: float | None) -> str:
    """Write a share as a percentage of two digits; only 0 is written "0 %" and only 1 "100 %"."""
    if share is None:
        return "–"
    found = 100 * share
    if 99 < found < 100:
        return f"{min(found, 99.9):.1f} %"
    return f"{found:.0f} %" if found >= 10 or found == 0 else f"{found:.2g} %"


def rate(share: float) -> str:
    """Write a rate that was asked for as a percentage, such as "2.5 %", with all its digits."""
    return f"{100 * share:g} %"


def percents(share: Measure) -> str:
    """Write a share with its 95 % interval as percentages, such as "3.4 % [2 %, 5.4 %]", or why it is missing."""
    if share.value is None:
        return share.reason or "not measured"
    interval = "" if share.low is None or share.high is None else f" [{percent(share.low)}, {percent(share.high)}]"
    return percent(share.value) + interval


def p_value(p: float) -> str:
    """Write a p-value; all values below a thousandth are written in the same way."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
