"""What processes that tests start do: functions of a module that a new process can find."""

import signal
import sys
import time
from pathlib import Path


def compute() -> None:
    """Work that torch divides between two threads."""
    import torch

    torch.set_num_threads(2)
    rows = torch.randn(2000, 512)
    torch.nn.functional.layer_norm(rows @ rows.T[:, :512], (512,))


def sleep_and_ignore(kind: signal.Signals) -> None:
    signal.signal(kind, signal.SIG_IGN)
    time.sleep(600)


def leave(code: object) -> None:
    if isinstance(code, Exception):
        raise code
    sys.stdout.write("said")
    sys.exit(code)


def answer_once(out: Path) -> None:
    """Take an input over into the results, unless an answer is there: the one to an older input, maybe."""
    if not (out / "answer").exists():
        (out / "answer").write_bytes(out.with_name(f"{out.name.removesuffix('-fresh')}-inputs").read_bytes())
