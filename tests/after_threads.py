"""Run `ltmia ARGUMENTS` where torch has computed with two threads before: from then on nothing may fork.

A forked process lacks the threads of its parent and waits for them for ever.
"""

import sys

import torch

from child_work import compute
from ltmia.__main__ import main

FORKS = ("os.fork", "os.forkpty")


def refuse_forks(event: str, _arguments: tuple[object, ...]) -> None:
    """End what forks: an audit hook of the interpreter."""
    if event in FORKS:
        raise RuntimeError(f"{event} after threads were used: start the process by spawn or forkserver")


if __name__ == "__main__":
    compute()
    torch.set_num_threads(1)  # two that wait for each other cost more than they save where tests run side by side
    sys.addaudithook(refuse_forks)
    sys.argv[0] = "ltmia"
    main()
