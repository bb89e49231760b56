"""Figures of the report as SVG text; drawn from scores alone, the same input giving the same bytes."""

from collections.abc import Mapping
from io import StringIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy.stats import beta

from ltmia.evaluation.roc import Scores, measurable, roc_curve

# Okabe and Ito's palette, told apart by all common kinds of colour vision; dashes tell lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
INK = "#777777"


def roc_figure(scores: Mapping[str, tuple[Scores, Scores]]) -> str:
    """Draw log-log ROC curves with 95 % bands, from one false positive on, beside the diagonal.

    Args:
        scores: Member and non-member scores by attack, most important first; only this one gets a band.
    """
    figure = Figure(figsize=(5.6, 4.6))
    axes = figure.add_subplot()
    plot_roc(axes, scores)
    return _svg(figure)


def plot_roc(axes: Axes, scores: Mapping[str, tuple[Scores, Scores]]) -> None:
    """Draw the curves onto axes."""
    smallest = 1.0
    for i, (name, (members, nonmembers)) in enumerate(scores.items()):
        n = len(measurable(nonmembers))
        if not n or not len(measurable(members)):
            continue
        smallest = min(smallest, 1.0 / n)
        curve = roc_curve(members, nonmembers)
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        axes.plot(curve.fpr, curve.tpr, drawstyle="steps-post", label=name, color=colour, ls=dash, lw=1.6)
        if i == 0:
            low, high = _band(curve.tpr, len(measurable(members)))
            axes.fill_between(curve.fpr, low, high, step="post", color=colour, alpha=0.15, lw=0)
    grid = np.geomspace(smallest, 1, 50)
    axes.plot(grid, grid, color=INK, lw=1, label="chance")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    axes.legend(loc="lower right", fontsize=8, framealpha=0)


def histogram_figure(members: Scores, nonmembers: Scores, name: str) -> str:
    """Draw the score distributions of members and non-members over common bins."""
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    both = np.concatenate([measurable(members), measurable(nonmembers)])
    both = both[np.isfinite(both)]
    if len(both):
        low, high = np.quantile(both, [0.002, 0.998])
        bins = np.linspace(float(low), float(high), 41)
        if bins[0] < bins[-1]:
            for values, label, colour, hatch in (
                (nonmembers, "non-members", COLOURS[0], ""),
                (members, "members", COLOURS[1], "///"),
            ):
                axes.hist(
                    measurable(values), bins.tolist(), density=True, label=label, color=colour, alpha=0.55,
                    hatch=hatch,
                )  # fmt: skip
            axes.legend(fontsize=8, framealpha=0)
    axes.set_xlabel(f"{name} score")
    axes.set_ylabel("density")
    return _svg(figure)


def _band(tpr: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise Clopper-Pearson bounds of each true-positive rate."""
    count = np.rint(tpr * n)
    with np.errstate(invalid="ignore"):
        low = np.where(count > 0, beta.ppf(0.025, count, n - count + 1), 0.0)
        high = np.where(count < n, beta.ppf(0.975, count + 1, n - count), 1.0)
    return low, high


def _svg(figure: Figure) -> str:
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=INK, which="both")
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        legend = axes.get_legend()
        for text in legend.get_texts() if legend else ():
            text.set_color(INK)
    figure.patch.set_alpha(0)
    figure.set_layout_engine("tight")
    out = StringIO()
    with mpl.rc_context({"svg.hashsalt": "ltmia", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = out.getvalue()
    return drawing[drawing.index("<svg") :]
