"""Interrupt audits, scorings, reports, trainings and labs at random moments, and compare their results.

    python scripts/torture.py OUT --kills 200 --seed 0

Each round runs one command in an empty folder. It interrupts the command with SIGINT, SIGTERM or SIGKILL and starts it
again, until the command finishes. Then it compares the files with those of an undisturbed run, except for times. After
each signal to an audit one of its inputs may change (a weight, a text, the dtype and so on); the results must then
equal those of an undisturbed audit of the last inputs. In a lab, single workers or only the lab itself may be killed.
Commands run in processes that have the libraries loaded, so that a signal hits the work and not the imports; only a
lab's workers load them again. The work is small and intervals come from few resamples, because only equality is
tested. A command that hangs is ended, and the place where it hung is shown. Exits with 1 if anything was found.
"""

import argparse
import random
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from clean_process import COMMANDS, Child, preload, start
from comparisons import Differences
from struck_commands import KINDS, prepare, run_quickly

from ltmia.folders import mark_folder
from ltmia.ownership import Marker, check_folder

STRIKES_OF_A_ROUND = 4
"""At most: then the command may finish."""
LIMIT_SECONDS = 300
"""A command that takes longer than this hangs."""


@dataclass
class Tally:
    """What the strikes did."""

    runs: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    differences: Differences = field(default_factory=Differences)
    changes: Counter[str] = field(default_factory=Counter)
    """What changed in inputs."""
    misbehaved: list[str] = field(default_factory=list)
    """Wrong exit codes, tracebacks, hangs."""


def empty_folder(out: Path) -> None:
    """Give an empty folder to the script; only one that it filled itself is emptied."""
    marker = Marker(kind=f"what {Path(sys.argv[0]).name} left")
    check_folder(out, marker, overwrite=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark_folder(out, marker)


class Torture:
    """Rounds of strikes, and what they found."""

    def __init__(self, work: Path, *, seed: int, limit: float) -> None:
        self.work, self.seed, self.limit = work, seed, limit
        self.tally = Tally()
        self.seconds: dict[str, float] = {}
        """The shortest time that each kind of command took from the beginning; signals come within it."""

    def prepare(self) -> None:
        """Write what the commands read, in a process of its own."""
        log = self.work / "prepare.log"
        if (code := start(prepare, (self.work,), log).ended(self.limit)) != 0:
            raise SystemExit(f"{log}: nothing could be prepared: exit code {code}\n{log.read_text('utf-8')}")

    def undisturbed(self, name: str) -> None:
        """Run one kind of command in peace, and take its time."""
        out = self.work / f"whole-{name}"
        KINDS[name].lay_out(self.work, out)
        began = time.monotonic()
        self._run_in_peace(name, out)
        self.seconds[name] = time.monotonic() - began

    def _run_in_peace(self, name: str, out: Path) -> None:
        child = self._start(name, out)
        if (code := child.ended(self.limit)) != 0:
            why = f"exit code {code}" if code is not None else self._hang(name, child, "in peace")
            raise SystemExit(f"{child.log}: the undisturbed run failed: {why}")

    def strike(self, name: str, kills: int, until: float) -> None:
        """Strike one kind of command until enough strikes have fallen, or time is over."""
        self.undisturbed(name)
        chance, whole = random.Random(f"{self.seed} {name}"), self.seconds[name]
        began, rounds, struck = self.tally.strikes.total(), 0, 0
        while struck < kills and time.monotonic() < until:
            rounds += 1
            out = self.work / f"{name}-{rounds}"
            KINDS[name].lay_out(self.work, out)
            found = len(self.tally.misbehaved), len(self.tally.differences.files)
            self._disturb(name, out, min(STRIKES_OF_A_ROUND, kills - struck), chance)
            struck = self.tally.strikes.total() - began
            self._judge(name, out)
            if found == (len(self.tally.misbehaved), len(self.tally.differences.files)):
                for folder in (out, *(path for path in self.work.glob(f"{out.name}-*") if path.is_dir())):
                    shutil.rmtree(folder)
        if struck < kills:
            self.tally.misbehaved.append(
                f"{name}: time was over after {struck} of {kills} strikes: give more --seconds"
            )
        print(f"{name}: {struck} strikes in {rounds} rounds, {whole:.1f} s undisturbed", flush=True)

    def _disturb(self, name: str, out: Path, kills: int, chance: random.Random) -> None:
        """Run one command again after each strike, on changed inputs if it has such, and once more undisturbed."""
        change = KINDS[name].change
        for n in range(kills):
            child, strike, began = self._start(name, out), chance.choice(KINDS[name].strikes), time.monotonic()
            if child.ended(chance.uniform(0, self.seconds[name])) is None and strike.fall(child, chance):
                self.tally.strikes[str(strike)] += 1
                code = self._end(name, child, f"after {strike}", strike.may_end_with)
            else:
                code = self._end(name, child, "before any strike", (0,))
                if not n:  # this run began from nothing, as the undisturbed one did, which may have compiled or waited
                    self.seconds[name] = min(self.seconds[name], time.monotonic() - began)
            if change is not None:
                self.tally.changes[change(out, chance)] += 1
            elif code == 0:
                return
        self._end(name, self._start(name, out), "left in peace after strikes", (0,))

    def _start(self, name: str, out: Path) -> Child:
        self.tally.runs += 1
        return start(run_quickly, KINDS[name].arguments(self.work, out), out.with_suffix(".log"))

    def _end(self, name: str, child: Child, when: str, right: tuple[int, ...]) -> int | None:
        """Wait for a command's end, and record it if its exit code is wrong."""
        code = child.ended(self.limit)
        if code is None:
            self.tally.misbehaved.append(self._hang(name, child, when))
        elif code not in right:
            self.tally.misbehaved.append(f"{child.log}: {name} {when}: exit code {code}")
        return code

    def _hang(self, name: str, child: Child, when: str) -> str:
        return f"{child.log}: {name} {when}: no end within {self.limit:.0f} s; it stood at\n{child.where_it_hangs()}"

    def _judge(self, name: str, out: Path) -> None:
        log = out.with_suffix(".log")
        # Python reports an interrupt inside a callback from C and then ignores it: the command goes on.
        said = re.sub(r"Exception ignored .*?KeyboardInterrupt", "", log.read_text("utf-8", "replace"), flags=re.DOTALL)
        if "Traceback" in said:
            self.tally.misbehaved.append(f"{log}: a traceback")
        try:
            KINDS[name].compare(self._whole(name, out), out, self.tally.differences)
        except (OSError, ValueError) as error:
            self.tally.differences.files.append(f"{out}: {error}")

    def _whole(self, name: str, out: Path) -> Path:
        """Return the results of an undisturbed run on the inputs of a disturbed one."""
        lay_out_anew = KINDS[name].lay_out_anew
        if lay_out_anew is None:
            return self.work / f"whole-{name}"
        fresh = lay_out_anew(out)
        self._run_in_peace(name, fresh)
        return fresh


def main() -> None:
    """Strike every kind of command, and say what was found."""
    parser = argparse.ArgumentParser(description="Interrupt commands at random moments; compare what they come to.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="Strikes in all; each kind of command gets one or more.")
    parser.add_argument("--kinds", default=",".join(KINDS), help="Commands to strike, with commas.")
    parser.add_argument("--seconds", type=float, default=1200, help="No round begins later.")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="Seconds after which a command hangs.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    empty_folder(args.out)
    preload(*COMMANDS)
    torture, until = Torture(args.out.resolve(), seed=args.seed, limit=args.limit), time.monotonic() + args.seconds
    torture.prepare()
    shares = {name: KINDS[name].share for name in args.kinds.split(",")}
    for name, share in shares.items():
        torture.strike(name, max(1, round(args.kills * share / sum(shares.values()))), until)
    tally = torture.tally
    print(f"runs: {tally.runs}, kills: {tally.strikes.total()} ({dict(tally.strikes)})")
    print(f"inputs changed: {tally.changes.total()} ({dict(tally.changes)})")
    print(f"rows lost: {tally.differences.lost}, rows doubled: {tally.differences.doubled}")
    print("results differing:", *tally.differences.files or [0], sep="\n" if tally.differences.files else " ")
    print("misbehaved:", *tally.misbehaved or [0], sep="\n" if tally.misbehaved else " ")
    raise SystemExit(1 if tally.differences or tally.misbehaved else 0)


if __name__ == "__main__":
    main()
