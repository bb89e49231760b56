"""Score very many short texts on Ray while its workers are killed: is each text scored once, as without Ray?

    python scripts/soak_ray.py OUT --texts 100000 --workers 2 --kills 8

Runs `ltmia score --engine ray`, kills a worker after every few files, then the command; the same command resumes.
Compares tokens and scores, text by text, with those of one process without Ray. Exits with 1 if a text is lost, doubled
or different, if files from before the kill were made again, or if nothing was left to resume.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from soak import prepare
from torture import empty_folder


def main() -> None:
    """Score with kills, score without Ray, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=8, help="workers killed before the command is")
    parser.add_argument("--every", type=int, default=20, help="files written between two kills, at least")
    args = parser.parse_args()
    empty_folder(args.out)
    work = args.out.resolve()
    prepare(work, args.texts)
    on_ray = [*command(work, "on-ray"), "--engine", "ray", "--workers", str(args.workers)]
    began = time.monotonic()
    n_killed = killed(on_ray, work, args.kills, args.every)
    before = chunk_files(work)
    resumed = time.monotonic()
    subprocess.run(on_ray, check=True)
    print(f"killed {n_killed} workers, then the command with {len(before)} files on disk: {resumed - began:.0f} s")
    print(f"resumed and ended: {time.monotonic() - resumed:.0f} s with {args.workers} workers")
    began = time.monotonic()
    subprocess.run(command(work, "alone"), check=True)
    print(f"one process without Ray, all of it: {time.monotonic() - began:.0f} s")
    found = [*resume_faults(before, chunk_files(work)), *faults(work, args.texts)]
    print(f"faults: {found or 0}")
    sys.exit(1 if found or n_killed < args.kills else 0)


def command(work: Path, out: str) -> list[str]:
    """Return the command that scores all candidates into a folder."""
    models = ["score", str(work / "target"), "--base", str(work / "base"), "--observer", "logprobs"]
    texts = ["--candidates", str(work / "candidates.jsonl"), "--nonmembers", str(work / "nonmembers.jsonl")]
    settings = ["--attack", "difference", "--max-length", "16", "--batch-size", "64", "--quiet"]
    return [sys.executable, "-m", "ltmia", *models, *texts, *settings, "-o", str(work / out)]


def killed(arguments: list[str], work: Path, n: int, every: int) -> int:
    """Run a command, kill a worker at a time, then the command and all it started; return how many workers."""
    child, n_killed = psutil.Popen(arguments), 0
    while n_killed < n and child.poll() is None:
        time.sleep(0.1)
        # Seconds would not do: on a busy machine all kills fall into the loading of the models.
        if len(chunk_files(work)) < every * (n_killed + 1):
            continue
        if scorers := [process for process in child.children(recursive=True) if is_scorer(process)]:
            random.choice(scorers).kill()
            n_killed += 1
    started = child.children(recursive=True)
    for process in [child, *started]:
        process.kill()
    psutil.wait_procs([child, *started], timeout=60)
    return n_killed


def is_scorer(process: psutil.Process) -> bool:
    """Say whether a process is a worker that scores chunks."""
    try:
        return "ChunkScorer" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def chunk_files(work: Path) -> dict[str, int]:
    """Return the files that workers have finished, each with the time when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in work.glob("on-ray/**/chunks-*/*.parquet")}


def resume_faults(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Say what is wrong with the files that were there before the command was killed."""
    found = []
    if not 0 < len(before) < len(after):
        found.append(
            f"killed with {len(before)} of {len(after)} files on disk, so nothing was resumed: take more texts"
        )
    if again := [name for name, written in before.items() if after.get(name) != written]:
        found.append(f"{len(again)} files were lost or made again")
    return found


def faults(work: Path, n_texts: int) -> list[str]:
    """Say what differs between both runs."""
    here, alone = (pq.read_table(work / out / "records.parquet") for out in ("on-ray", "alone"))
    found = []
    if not len(here) == len(set(here["id"].to_pylist())) == n_texts:
        found.append(f"{len(here)} records, {len(set(here['id'].to_pylist()))} ids, of {n_texts}")
    if here["n_tokens"] != alone["n_tokens"]:
        return [*found, "numbers of tokens differ"]
    scores, others = (table["score_difference"].to_numpy() for table in (here, alone))
    differences, step = np.abs(scores - others), np.diff(np.unique(others)).min()
    # Texts share their batch with others, and this noise can turn the rounding of a published score.
    print(f"{np.sum(differences > 0)} of {n_texts} scores differ by one step of their rounding")
    if not (differences < 1.5 * step).all():
        found.append(f"{np.sum(~(differences < 1.5 * step))} scores differ")
    return found


if __name__ == "__main__":
    main()
