"""An engine of the lab that starts no processes: loading the libraries in each takes longer than a small lab's work.

python tests/one_process.py RECIPE OUT     runs a lab with it
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ltmia.lab.engine import Perform, Schedule, Watcher, attempt, settle
from ltmia.lab.steps import Step


class OneProcess:
    """Does every step where it is called."""

    def run(self, steps: Sequence[Step], perform: Perform, folder: Path, watcher: Watcher) -> None:
        """Do all that can be done, then return."""
        schedule = Schedule(steps)
        while (step := schedule.next()) is not None:
            watcher.begun(step, 1)
            started = time.monotonic()
            answer = attempt(perform, step, folder)
            settle(step, time.monotonic() - started, answer, schedule, watcher)


if __name__ == "__main__":
    from ltmia.lab.run import run_lab

    run_lab(Path(sys.argv[1]), Path(sys.argv[2]), engine=OneProcess())
