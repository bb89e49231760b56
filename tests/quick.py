"""Cheaper audits for the suite: fewer trees, figures without ticks, small garbage collections, no wait for the disk."""

import gc
import os

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ltmia.evaluation import controls
from ltmia.report import figures

SHIPPED_TREES = controls.N_TREES
FEWER_TREES = 10
SHIPPED_DRAWING = figures._svg


def be_quick() -> None:
    """Let this process, and those forked from it, audit with less work than the program does."""
    controls.N_TREES = FEWER_TREES  # the trees of the control would take a third of an audit's time
    figures._svg = _without_ticks
    gc.collect()
    gc.freeze()  # what is loaded stays: the collections that loading a model asks for need not look at all of it again
    os.fsync = _no_wait  # guards against power failures alone, which no test has; a killed process loses nothing


def _without_ticks(figure: Figure, name: str) -> str:
    """Draw a figure in a fifth of the time; tests of reports draw them whole."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        axis.set_major_locator(NullLocator())
        axis.set_minor_locator(NullLocator())
    return SHIPPED_DRAWING(figure, name)


def _no_wait(_file: object) -> None:
    pass
