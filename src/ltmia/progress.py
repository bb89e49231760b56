"""How long work tells how far it is."""

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with the name of the task, how much of it is done, and how much there is."""


def silent(_task: str, _done: int, _total: int) -> None:
    """Report nothing."""
