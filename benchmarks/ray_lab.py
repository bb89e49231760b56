"""Throughput of the lab on Ray with one and with two local workers, in turns.

    python benchmarks/ray_lab.py OUT --rounds 2

Each run makes the same combinations (the embedded base on the embedded texts, one for each seed) in an empty folder.
Ray and its workers are started beforehand: a cluster is up when a lab joins it. Needs a machine with two cores to
itself; the load average, which says whether it had them, is printed with each time.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from statistics import median

import ray

from ltmia.lab.ray_engine import RayEngine, connect
from ltmia.lab.run import run_lab

RECIPE = """
[corpora.late]
path = "embedded"
documents = "sotu/[12][90]*"

[bases.demo]
path = "embedded"

[regimes.quick]
learning_rate = 1e-3
epochs = 2
n_members = {texts}
n_nonmembers = {texts}

[[grid]]
bases = ["demo"]
corpora = ["late"]
regimes = ["quick"]
seeds = {seeds}
"""


@ray.remote(num_cpus=1)
def _import() -> int:
    """Import what the steps need, so that no run pays for it."""
    import ltmia.lab.work  # noqa: F401  for what it loads

    time.sleep(5)  # long enough that each worker gets one of these
    return os.getpid()


def timed(recipe: Path, out: Path, workers: int) -> float:
    """Run the lab; return its seconds."""
    shutil.rmtree(out, ignore_errors=True)
    connect(workers)
    try:
        ray.get([_import.remote() for _ in range(workers)])
        began = time.monotonic()
        status = run_lab(recipe, out, engine=RayEngine(n_workers=workers))
        seconds = time.monotonic() - began
    finally:
        ray.shutdown()
    if status.count("done") != len(status.steps):
        raise SystemExit(f"{out}: {[step.error for step in status.failed]}")
    print(f"{workers} workers: {seconds:.1f} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    return seconds


def main() -> None:
    """Measure in turns and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description="Throughput of the lab on Ray: two workers against one.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=8, help="Combinations of each run.")
    parser.add_argument("--texts", type=int, default=150, help="Members of each, and as many non-members.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = args.out / "recipe.toml"
    recipe.write_text(RECIPE.format(texts=args.texts, seeds=list(range(args.seeds))), "utf-8")
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for workers, found in times.items():
            found.append(timed(recipe, args.out / f"workers-{workers}", workers))
    print(f"throughput of 2 workers over that of 1: {median(times[1]) / median(times[2]):.2f}")


if __name__ == "__main__":
    main()
