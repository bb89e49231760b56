"""Work in a child process that is killed on the way."""

import os
import signal
from collections.abc import Callable
from typing import NoReturn


def die(*_arguments: object, **_keywords: object) -> NoReturn:
    """Kill this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived")


def killed(work: Callable[[], object]) -> None:
    """Run something in a child that is expected to be killed on the way."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
