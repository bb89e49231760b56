"""Memory that the C library keeps after it was freed, given back to the system. Knows nothing of models."""

import ctypes
from collections.abc import Callable
from typing import cast


def _glibc_trim() -> Callable[[int], int] | None:
    try:
        return cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)
    except (AttributeError, OSError, TypeError):  # another C library, which keeps less or cannot be asked
        return None


_TRIM = _glibc_trim()


def trim_heap() -> None:
    """Give back what is free; costs milliseconds.

    glibc keeps freed tensors of up to 32 MB, in pieces that the next model's do not fit into: a process would grow from
    pass to pass.
    """
    if _TRIM is not None:
        _TRIM(0)
