"""Returns freed memory to the system, because the C library would keep it."""

import ctypes
from collections.abc import Callable
from typing import cast

LARGE_BYTES = 2**20
"""Blocks of this size or more go back to the system as soon as they are freed, if that is asked for."""
M_MMAP_THRESHOLD = -3
"""Number of this setting in glibc's malloc.h."""


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        return cast(Callable[..., int], getattr(ctypes.CDLL(None), name))
    except (AttributeError, OSError, TypeError):  # another C library, which keeps less or cannot be asked
        return None


_TRIM = _of_glibc("malloc_trim")
_SET = _of_glibc("mallopt")


def trim_heap() -> None:
    """Return free memory to the system. This takes milliseconds.

    glibc keeps freed tensors of up to 32 MB in pieces that do not fit the next model's tensors, so a process would grow
    from pass to pass.
    """
    if _TRIM is not None:
        _TRIM(0)


def return_large_blocks() -> None:
    """Let the C library keep no large block from now on.

    Weights that are loaded for one layer after the other would otherwise leave pieces of memory that together become as
    large as the model. Fresh memory takes time, so this is only for models that are loaded in that way.
    """
    if _SET is not None:
        _SET(M_MMAP_THRESHOLD, LARGE_BYTES)
