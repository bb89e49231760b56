"""The type of function that reports progress."""

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with the name of the task, the work done and the total work."""


def silent(_task: str, _done: int, _total: int) -> None:
    """Report nothing."""
