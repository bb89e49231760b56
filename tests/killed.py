"""Work in a child process that is killed on the way."""

import os
import resource
import signal
from collections.abc import Callable
from typing import NoReturn

import torch


def die(*_arguments: object, **_keywords: object) -> NoReturn:
    """Kill this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived")


def renew_threads() -> None:
    """Make torch's pool of threads anew in a forked process.

    torch does so when the pool is first asked for. The threads that load a model ask at the same moment, and one of
    them may find none ("Invalid thread pool!").
    """
    torch.set_num_threads(1)


def killed(work: Callable[[], object]) -> None:
    """Run something in a child that is expected to be killed on the way."""
    child = os.fork()
    if not child:
        try:
            renew_threads()
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def killed_at_size(n_bytes: int, work: Callable[[], object]) -> None:
    """Run something in a child that is killed when a file that it writes would exceed so many bytes."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, die)  # the file then holds just so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
        work()

    killed(limited)
