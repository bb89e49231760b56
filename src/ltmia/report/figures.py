"""Figures of the report and of evaluations as SVG text; the same numbers always give the same bytes.

In the report, ink and colours are CSS variables of the page, so that one drawing serves light, dark and paper. The
figure of an evaluation is a separate file on white.
"""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy.stats import beta

from ltmia.evaluation.roc import Scores, measurable, roc_curve
from ltmia.evaluation.section import Measure

# Okabe and Ito's palette, distinct in all common kinds of colour vision; dashes tell lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A6D00")
DASHES = ("-", (0, (6, 2)), "-.", (0, (2, 1.5)), (0, (8, 2, 2, 2, 2, 2)))
CONTROL_COLOUR, CONTROL_DASH = "#767676", (0, (1, 1.5))
INK = "#010203"
"""Placeholder for the page's ink; replaced once the drawing is text."""
SIZE = (4.5, 3.9)
"""Inches. Small, so that letters stay readable on a telephone."""
LEFT, RIGHT, BOTTOM = 0.155, 0.955, 0.14
ROOM_FOR_LEGEND = 0.87
"""Edges of the drawing, as parts of the figure; the last is the upper edge where the legend stands above it."""
OFF_AXIS = 1e-9
"""A rate left of every axis."""
WIDEST_START = 0.1
"""Logarithmic axes begin here or lower, even with few texts."""
MOST_POINTS = 180
"""Points per curve, spaced evenly over the logarithm of the axis; more cannot be seen."""


def roc_figure(scores: Mapping[str, tuple[Scores, Scores]], control: str) -> str:
    """Draw log-log ROC curves with 95 % bands, beginning at one false positive, with diagonal and control.

    Args:
        scores: Member and non-member scores by attack, most important first; the first curve gets a band, and so
            does the control.
        control: The attack that sees no model.
    """
    figure, axes = _new()
    plot_roc(axes, scores, control=control)
    return _svg(figure, "roc")


def plot_roc(axes: Axes, scores: Mapping[str, tuple[Scores, Scores]], *, control: str) -> None:
    """Draw the curves onto axes; see `roc_figure`."""
    smallest = WIDEST_START
    for i, (name, (members, nonmembers)) in enumerate(scores.items()):
        n_members, n_nonmembers = len(measurable(members)), len(measurable(nonmembers))
        if not n_members or not n_nonmembers:
            continue
        smallest = min(smallest, 1.0 / n_nonmembers)
        curve = roc_curve(members, nonmembers)
        # A logarithmic axis has no 0: what is found before the first false positive is drawn from the left edge on.
        first = np.flatnonzero(curve.fpr == 0)[-1]
        kept = first + _thinned(curve.fpr[first:])
        fpr, tpr = np.maximum(curve.fpr[kept], OFF_AXIS), curve.tpr[kept]
        colour, dash = (CONTROL_COLOUR, CONTROL_DASH) if name == control else (COLOURS[i % 5], DASHES[i % 5])
        axes.plot(fpr, tpr, drawstyle="steps-post", label=_literal(name), color=colour, ls=dash, lw=1.7)
        if i == 0 or name == control:
            low, high = _band(tpr, n_members)
            axes.fill_between(fpr, low, high, step="post", color=colour, alpha=0.16, lw=0)
    grid = np.geomspace(smallest, 1, 50)
    axes.plot(grid, grid, color=INK, lw=0.9, label="chance")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    axes.legend(loc="lower right", framealpha=0, fontsize=9, handlelength=2.8)


def distribution_figure(kinds: Mapping[str, Scores], name: str, flag_from: float | None) -> str:
    """Draw the distribution of scores of each kind of text over common bins.

    Args:
        kinds: Scores by kind of text; at most two.
        name: The attack.
        flag_from: Lowest flagged score, drawn as a line.
    """
    figure, axes = _new(top=ROOM_FOR_LEGEND)
    finite = [values[np.isfinite(values)] for values in kinds.values()]
    both = np.concatenate([*finite, np.empty(0)])
    low, high = np.quantile(both, [0.002, 0.998]) if len(both) else (0.0, 0.0)
    if low < high:
        bins = np.linspace(low, high, 41)
        for i, (kind, values) in enumerate(zip(kinds, finite, strict=True)):
            share = np.histogram(values, bins)[0] / max(len(values), 1)
            axes.stairs(share, bins, label=kind, color=COLOURS[i], ls=DASHES[i], lw=1.7)
            axes.stairs(share, bins, fill=True, color=COLOURS[i], alpha=0.16, lw=0)
        axes.set_ylim(bottom=0)
    if flag_from is not None and low < flag_from < high:
        axes.axvline(flag_from, color=INK, lw=1, ls=(0, (4, 3)), label="flagged from here on")
    if axes.get_legend_handles_labels()[0]:
        # Above the drawing, where no line runs through it.
        axes.legend(framealpha=0, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=2.8)
    axes.set_xlabel(f"score of {_literal(name)}")
    axes.set_ylabel("share of texts per bin")
    return _svg(figure, "scores")


def calibration_figure(p_values: Mapping[str, Scores], smallest: float) -> str:
    """Draw the share of texts whose p-value is at most each level; for non-members it should equal the level.

    Args:
        p_values: P-values by kind of text; the kind "non-members" gets a 95 % band.
        smallest: Smallest p-value that is possible.
    """
    figure, axes = _new()
    for i, (kind, values) in enumerate(p_values.items()):
        values = np.sort(measurable(values))
        if not len(values):
            continue
        levels = np.unique(values)
        levels = levels[_thinned(levels)]
        share = np.searchsorted(values, levels, side="right") / len(values)
        axes.plot(levels, share, drawstyle="steps-post", color=COLOURS[i], ls=DASHES[i], lw=1.7, label=kind)
        if kind == "non-members":
            low, high = _band(share, len(values))
            axes.fill_between(levels, low, high, step="post", color=COLOURS[i], alpha=0.16, lw=0)
    smallest = min(smallest, WIDEST_START)
    grid = np.geomspace(smallest, 1, 50)
    axes.plot(grid, grid, color=INK, lw=0.9, label="exactly as promised")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
    axes.set_xlabel("level")
    axes.set_ylabel("share of texts with p up to the level")
    axes.legend(loc="lower right", framealpha=0, fontsize=9, handlelength=2.8)
    return _svg(figure, "calibration")


class Contest(NamedTuple):
    """AUC of a classifier on one combination, and AUC of the best other attack."""

    combination: str
    own: Measure
    best: Measure


def evaluation_figure(groups: Mapping[str, Sequence[Contest]], own: str, best: str) -> str:
    """Draw the AUC of a classifier and of the best other attack on each combination, with intervals, as an SVG file.

    Args:
        groups: Combinations by heading.
        own: Name of the classifier.
        best: Name of the other attacks.
    """
    height = 1.2 + 0.24 * sum(1 + len(contests) for contests in groups.values())
    figure = Figure(figsize=(7.0, height), layout="tight")
    plot_evaluation(figure.add_subplot(), groups, own, best)
    return _drawing(figure, "test", paper=1.0)


def plot_evaluation(axes: Axes, groups: Mapping[str, Sequence[Contest]], own: str, best: str) -> None:
    """Draw the same figure onto axes; see `evaluation_figure`."""
    rows: list[tuple[str, Contest | None]] = []
    for heading, contests in groups.items():
        rows += [(heading, None), *((contest.combination, contest) for contest in contests)]
    for i, (name, shape, shift) in enumerate(((own, "o", -0.14), (best, "s", 0.14))):
        measures = [(y, (contest.own, contest.best)[i]) for y, (_, contest) in enumerate(rows) if contest]
        shown = [(y + shift, m.value, m.low, m.high) for y, m in measures if m.value is not None]
        y, x, low, high = np.array(shown, float).reshape(-1, 4).T
        spread = np.nan_to_num(np.maximum([x - low, high - x], 0.0))
        axes.errorbar(x, y, xerr=spread, fmt=shape, ms=4, lw=1.4, color=COLOURS[i], label=_literal(name))
    axes.axvline(0.5, color=CONTROL_COLOUR, lw=0.9, ls=CONTROL_DASH)
    axes.grid(axis="x", lw=0.4, color=CONTROL_COLOUR, alpha=0.4)
    axes.set_yticks(range(len(rows)), [_literal(label) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    for label, (_, contest) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if contest else "bold")
    axes.set_xlabel("AUC, with 95 % intervals")
    axes.legend(framealpha=0, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _new(top: float = 0.97) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    # Margins of labels this small are known; a layout engine would draw everything twice to find them.
    return figure, figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, top - BOTTOM))


def _literal(name: str) -> str:
    """Escape dollar signs, which would start a formula, and leave out characters that no font draws."""
    return "".join(c for c in name if c.isprintable()).replace("$", r"\$")


def _thinned(x: np.ndarray) -> np.ndarray:
    """Choose at most about `MOST_POINTS` rows, evenly over log x, with the first and the last."""
    if len(x) <= MOST_POINTS:
        return np.arange(len(x))
    positive = np.log(np.maximum(x, x[x > 0].min()))
    cell = np.floor((positive - positive[0]) / max(positive[-1] - positive[0], 1e-12) * MOST_POINTS)
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    last = np.append(first[1:] - 1, len(x) - 1)
    return np.unique(np.concatenate([first, last]))


def _band(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pointwise Clopper-Pearson bounds of shares of n."""
    count = np.rint(share * n)
    with np.errstate(invalid="ignore"):
        low = np.where(count > 0, beta.ppf(0.025, count, n - count + 1), 0.0)
        high = np.where(count < n, beta.ppf(0.975, count + 1, n - count), 1.0)
    return low, high


def _svg(figure: Figure, name: str) -> str:
    """Return the drawing as an `svg` element whose ids begin with `name` and whose colours are the page's."""
    return _themed(_drawing(figure, name, paper=0.0))


def _drawing(figure: Figure, name: str, *, paper: float) -> str:
    """Return the drawing as an `svg` element whose ids begin with `name`, on a background of the given opacity."""
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=INK, which="both", labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        legend = axes.get_legend()
        for part in (axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())):
            part.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
    figure.patch.set_alpha(paper)
    out = StringIO()
    with mpl.rc_context({"svg.hashsalt": "ltmia", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = out.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{name}-", drawing)
    drawing = re.sub(r'xlink:href="#', f'href="#{name}-', drawing)
    return re.sub(r"(?<=\d\.\d\d)\d+", "", drawing)  # a hundredth of a point is enough


def _themed(drawing: str) -> str:
    drawing = drawing.replace(INK, "currentColor").replace(CONTROL_COLOUR, "var(--muted)")
    for i, colour in enumerate(COLOURS, 1):
        drawing = drawing.replace(colour.lower(), f"var(--line-{i})")
    return re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", drawing)
