"""Kill the smoke lab at random moments and compare what it leaves with a lab left in peace.

    python scripts/kill_lab.py OUT --kills 20 --seed 0

Each round starts a lab in an empty folder and kills -9 the lab, one of its workers, or all of them at once, again and
again until the lab is done; rounds follow one another until enough kills have struck. Then every store of every round
is compared with that of the undisturbed lab, byte for byte, but for what the manifest says of time and machine.
The same OUT with another seed kills further labs and compares them with the same undisturbed one. Exits 1 if anything
differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

RECIPE = Path(__file__).parent.parent / "recipes" / "smoke.toml"
VICTIMS = ("lab", "worker", "all")
NOT_COMPARED = ("created", "environment")
"""What a manifest says of time and machine."""
STARTING_SECONDS = 10.0
"""Imports and planning of a lab, and imports of its workers."""
LIMIT_SECONDS = 900
"""A lab that takes longer than this hangs."""


@dataclass
class Figures:
    """What the kills did."""

    kills: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    """Kinds of the steps at work when a kill struck."""
    rounds: int = 0
    seconds: float = 0.0
    """What a lab left in peace takes, start included: kills strike within that time."""
    lost: int = 0
    doubled: int = 0
    differing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """No kill left a trace."""
        return not (self.lost or self.doubled or self.differing or self.left_over)


def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start the lab in a process group of its own."""
    command = [sys.executable, "-m", "ltmia", "lab", "run", str(RECIPE), "-o", str(out)]
    return subprocess.Popen([*command, "--workers", str(workers), "--quiet"], start_new_session=True)


def worker_processes(lab: int) -> list[int]:
    """List the lab's workers; its resource tracker, and what has just ended, is not one."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            is_child = folder.name.isdigit() and _parent(folder) == lab
            if is_child and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def at_work(out: Path, since: datetime) -> list[str]:
    """List the kinds of the steps that this run of the lab has begun and not ended."""
    records = [json.loads(path.read_text("utf-8")) for path in (out / "steps").glob("*.json")]
    running = [record for record in records if record["state"] == "running"]
    return [record["kind"] for record in running if datetime.fromisoformat(record["started"]) > since]


def at_work_seconds(out: Path) -> float:
    """Add up what the steps of a finished lab took."""
    return sum(json.loads(path.read_text("utf-8"))["seconds"] for path in (out / "steps").glob("*.json"))


def strike(process: subprocess.Popen[bytes], victim: str, chance: random.Random) -> bool:
    """Kill -9 what is named; False if there was nothing to kill."""
    workers = worker_processes(process.pid)
    if victim == "worker":
        if not workers:
            return False
        os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
    elif victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    return True


def disturbed(out: Path, figures: Figures, args: argparse.Namespace, chance: random.Random) -> None:
    """Run one lab to its end, killing it as long as kills are due."""
    shutil.rmtree(out, ignore_errors=True)
    while True:
        before = figures.kills["worker"]
        since, process = datetime.now(UTC), start(out, args.workers)
        while figures.kills.total() < args.kills:
            try:
                process.wait(chance.uniform(0, figures.seconds))
                # It was done before the kill: the machine is faster now than when the time was taken.
                figures.seconds = min(figures.seconds, (datetime.now(UTC) - since).total_seconds())
                break
            except subprocess.TimeoutExpired:
                victim, busy = chance.choice(VICTIMS), at_work(out, since)
            if strike(process, victim, chance):
                figures.kills[victim] += 1
                figures.struck.update(busy or ["no step"])
                print(f"kill {figures.kills.total()}: {victim}, during {', '.join(busy) or 'no step'}", flush=True)
            if victim != "worker":
                break
        code = process.wait(LIMIT_SECONDS)
        if code == 0:
            return
        # A step whose worker is killed twice fails, and is tried again by the next run.
        if code != -signal.SIGKILL and figures.kills["worker"] < before + 2:
            raise SystemExit(f"{out}: the lab ended with exit code {code}; see {out}/logs")


def compare(whole: Path, killed: Path, figures: Figures) -> None:
    """Compare every file of every store of two labs."""
    files = {path.relative_to(whole) for path in (whole / "stores").rglob("*") if path.is_file()}
    found = {path.relative_to(killed) for path in (killed / "stores").rglob("*") if path.is_file()}
    figures.differing += [f"{killed.name}/{path}: missing" for path in sorted(files - found)]
    figures.left_over += [f"{killed.name}/{path}" for path in sorted(found - files)]
    for path in sorted(files & found):
        if _content(whole / path) != _content(killed / path):
            figures.differing.append(f"{killed.name}/{path}")
        if path.name == "texts.parquet":
            wanted, ids = (Counter(pq.read_table(lab / path)["id"].to_pylist()) for lab in (whole, killed))
            figures.lost += (wanted - ids).total()
            figures.doubled += (ids - wanted).total()
    hidden = [path for path in killed.rglob(".*.*") if ".partial-" in path.name or path.name.endswith(".work")]
    figures.left_over += [f"{killed.name}/{path.relative_to(killed)}" for path in sorted(hidden)]


def _content(path: Path) -> object:
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text("utf-8"))
    return {key: value for key, value in manifest.items() if key not in NOT_COMPARED}


def main() -> None:
    """Run, kill, compare, and say what was found."""
    parser = argparse.ArgumentParser(description="Kill the smoke lab at random moments; compare its stores.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    chance, figures = random.Random(args.seed), Figures()
    whole = args.out / "whole"
    if start(whole, args.workers).wait(LIMIT_SECONDS):
        raise SystemExit(f"{whole}: the undisturbed lab failed")
    figures.seconds = STARTING_SECONDS + at_work_seconds(whole) / args.workers
    print(f"undisturbed: {figures.seconds:.0f} s", flush=True)
    while figures.kills.total() < args.kills:
        figures.rounds += 1
        killed = args.out / f"killed-{figures.rounds}"
        disturbed(killed, figures, args, chance)
        compare(whole, killed, figures)
    print(f"kills: {figures.kills.total()} ({dict(figures.kills)}) in {figures.rounds} labs, at {dict(figures.struck)}")
    print(f"rows lost: {figures.lost}, rows doubled: {figures.doubled}")
    print(f"files that differ: {figures.differing or 0}, left over: {figures.left_over or 0}")
    raise SystemExit(0 if figures.is_clean else 1)


if __name__ == "__main__":
    main()
