"""Returns freed memory to the system, because the C library would keep it."""

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
    """Return free memory to the system. This takes milliseconds.

    glibc keeps freed tensors of up to 32 MB in pieces that do not fit the next model's tensors, so a process would grow
    from pass to pass.
    """
    if _TRIM is not None:
        _TRIM(0)
