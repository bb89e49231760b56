"""A smaller control for the audits of the suite: its trees would take a third of an audit's time."""

from ltmia.evaluation import controls

SHIPPED_TREES = controls.N_TREES
FEWER_TREES = 10


def grow_fewer_trees() -> None:
    """Let this process, and those forked from it, fit the control with fewer trees than the program does."""
    controls.N_TREES = FEWER_TREES
