"""Compiles kernels with numba, and keeps their machine code where there is a folder for it."""

from collections.abc import Callable
from typing import Any

from numba import config, njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel at its first call; it runs without Python's lock.

    Without a folder to write to (package and home both read-only), each process compiles it anew.
    """
    kernel = njit(nogil=True)(function)
    if not config.DISABLE_JIT:
        try:
            kernel.enable_caching()
        except RuntimeError:  # numba has found no such folder
            return kernel
    return kernel
