"""Interrupt audits, scorings, reports, trainings and labs at random moments, and compare what they come to.

    python scripts/torture.py OUT --kills 200 --seed 0

Each round runs one command in an empty folder and strikes it with SIGINT, SIGTERM or SIGKILL again and again, until it
has got through; then its files are compared with those of an undisturbed run, but for what tells of time. Of labs also
single workers are killed, or the lab alone. Commands run in processes that have the libraries loaded, so that a strike
costs work and not imports; only a lab's workers load them anew. The work is small, and intervals rest on few
resamples: what is asked is whether two runs come to the same. A command that hangs is ended and says where it stood.
Exits 1 unless nothing was found.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from clean_process import COMMANDS, Child, preload, run_command, start
from comparisons import Differences, compare_audits, compare_files, compare_labs

from ltmia.folders import mark_folder
from ltmia.ownership import Marker, check_folder

STRIKES_OF_A_ROUND = 4
"""At most: then the command may finish."""
N_MEMBERS, N_NONMEMBERS = 30, 40
N_RESAMPLES = 20
LIMIT_SECONDS = 300
"""A command that takes longer than this hangs."""
RECIPE = """
[corpora.early]
path = "embedded"
[bases.demo]
path = "embedded"
[regimes.quick]
learning_rate = 1e-3
epochs = 1
n_members = 20
n_nonmembers = 40
max_length = 32
[[grid]]
bases = ["demo"]
corpora = ["early"]
regimes = ["quick"]
"""


@dataclass(frozen=True, slots=True)
class Strike:
    """A signal, and who gets it."""

    signal: signal.Signals
    victim: str = "command"
    """`command`: the command's own process; `group`: all of its processes at once; `worker`: one of a lab."""

    def __str__(self) -> str:
        return self.signal.name if self.victim == "command" else f"{self.signal.name} of the {self.victim}"

    def fall(self, child: Child, chance: random.Random) -> bool:
        """Send the signal; say whether there was anybody to get it."""
        if self.victim == "group":
            os.killpg(child.pid, self.signal)
        elif self.victim == "command":
            os.kill(child.pid, self.signal)
        else:
            workers = sorted(workers_of(child.pid))
            if not workers:
                return False
            os.kill(chance.choice(workers), self.signal)
        return True

    @property
    def may_end_with(self) -> tuple[int, ...]:
        """Exit codes: it was done already, or says that it was interrupted, or dies of the signal."""
        return (0,) if self.victim == "worker" else (0, 2, -self.signal)


def workers_of(lab: int) -> list[int]:
    """List the worker processes of a lab."""
    try:
        return [p.pid for p in psutil.Process(lab).children() if "spawn_main" in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


STRIKES = (Strike(signal.SIGINT), Strike(signal.SIGTERM), Strike(signal.SIGKILL, "group"))
OF_LABS = (*STRIKES, Strike(signal.SIGKILL), Strike(signal.SIGKILL, "worker"))


@dataclass
class Tally:
    """What the strikes did."""

    runs: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    differences: Differences = field(default_factory=Differences)
    misbehaved: list[str] = field(default_factory=list)
    """Wrong exit codes, tracebacks, hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of command: how it is begun, struck and judged."""

    share: float
    """Part of the strikes that it gets."""
    arguments: Callable[[Path, Path], list[str]]
    """Of the command, given the folder of all work and that of its results."""
    compare: Callable[[Path, Path, Differences], None]
    lay_out: Callable[[Path, Path], object] = lambda _work, out: out.mkdir()
    """Makes the folder of results that the command begins with; same arguments."""
    strikes: Sequence[Strike] = STRIKES


def _pair(work: Path) -> list[str]:
    from ltmia.data.embedded import demo_base_path

    return [str(work / "target"), "--base", str(demo_base_path()), "--max-length", "24", "--batch-size", "2"]


def _texts(work: Path, out: Path, first: str) -> list[str]:
    sides = [first, str(work / "members.jsonl"), "--nonmembers", str(work / "nonmembers.jsonl")]
    return [*sides, "-o", str(out), "--quiet"]


def audit(work: Path, out: Path) -> list[str]:
    """An audit with the classifier and an attack that passes over the texts once more."""
    attacks = ["--attacks", "ltmia,difference,lowercase"]
    return ["audit", *_pair(work), *attacks, *_texts(work, out, "--members")]


def score(work: Path, out: Path) -> list[str]:
    """A scoring of the same texts."""
    return ["score", *_pair(work), *_texts(work, out, "--candidates")]


def lab(work: Path, out: Path) -> list[str]:
    """A lab of one combination, with a worker process."""
    return ["lab", "run", str(work / "lab.toml"), "-o", str(out), "--workers", "1", "--quiet"]


def train(work: Path, out: Path) -> list[str]:
    """A training on what the lab made."""
    stores = next((work / "whole-lab" / "stores").iterdir())
    return ["train", str(stores), "-o", str(out / "classifier"), "--epochs", "8", "--quiet"]


def with_salt(_work: Path, out: Path) -> None:
    """Lay out a folder whose salt is that of every other one, so that their ids can be compared."""
    (out / "private").mkdir(parents=True)
    (out / "private" / "salt").write_text("5a" * 32, "utf-8")


def copy_audit(work: Path, out: Path) -> None:
    """Lay out a finished audit without its page."""
    shutil.copytree(work / "whole-audit", out)
    (out / "report.html").unlink()


KINDS: Mapping[str, Kind] = {
    "audit": Kind(share=0.4, arguments=audit, compare=compare_audits, lay_out=with_salt),
    "score": Kind(share=0.25, arguments=score, compare=compare_audits, lay_out=with_salt),
    "lab": Kind(share=0.15, arguments=lab, compare=compare_labs, strikes=OF_LABS),
    "train": Kind(share=0.1, arguments=train, compare=compare_files),
    "report": Kind(share=0.1, arguments=lambda _, out: ["report", str(out)], compare=compare_files, lay_out=copy_audit),
}
"""Training reads what the lab made, reports what the audit did; so these come first."""


def prepare(work: Path) -> None:
    """Write models, texts and a recipe: the target is the embedded base moved a little."""
    import json

    from ltmia.data.embedded import demo_base_path, demo_texts
    from ltmia.finetuning.perturbed import save_perturbed

    save_perturbed(demo_base_path(), work / "target")
    texts = demo_texts()
    for name, rows in (("members", range(N_MEMBERS)), ("nonmembers", range(N_MEMBERS, N_MEMBERS + N_NONMEMBERS))):
        lines = [json.dumps({"id": texts.ids[i], "text": texts.texts[i]}) for i in rows]
        (work / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    (work / "lab.toml").write_text(RECIPE)


def run_quickly(*arguments: str) -> None:
    """Run a command with few resamples: what intervals rest on is no matter here."""
    import ltmia.evaluation.intervals

    ltmia.evaluation.intervals.measure_attack.__kwdefaults__["n_resamples"] = N_RESAMPLES
    run_command(*arguments)


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
        """The shortest time in which each kind of command got through from the beginning: strikes fall within it."""

    def prepare(self) -> None:
        """Write what the commands read, in a process of its own."""
        log = self.work / "prepare.log"
        if (code := start(prepare, (self.work,), log).ended(self.limit)) != 0:
            raise SystemExit(f"{log}: nothing could be prepared: exit code {code}\n{log.read_text('utf-8')}")

    def undisturbed(self, name: str) -> None:
        """Run one kind of command in peace."""
        out = self.work / f"whole-{name}"
        KINDS[name].lay_out(self.work, out)
        began = time.monotonic()
        child = self._start(name, out)
        if (code := child.ended(self.limit)) != 0:
            why = f"exit code {code}" if code is not None else self._hang(name, child, "in peace")
            raise SystemExit(f"{child.log}: the undisturbed run failed: {why}")
        self.seconds[name] = time.monotonic() - began

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
                shutil.rmtree(out)
        if struck < kills:
            self.tally.misbehaved.append(
                f"{name}: time was over after {struck} of {kills} strikes: give more --seconds"
            )
        print(f"{name}: {struck} strikes in {rounds} rounds, {whole:.1f} s undisturbed", flush=True)

    def _disturb(self, name: str, out: Path, kills: int, chance: random.Random) -> None:
        """Run one command to its end: the same again after each strike, and at last in peace."""
        for n in range(kills):
            child, strike, began = self._start(name, out), chance.choice(KINDS[name].strikes), time.monotonic()
            if child.ended(chance.uniform(0, self.seconds[name])) is None and strike.fall(child, chance):
                self.tally.strikes[str(strike)] += 1
                code = self._end(name, child, f"after {strike}", strike.may_end_with)
            else:
                code = self._end(name, child, "before any strike", (0,))
                if not n:  # nothing was there yet; the undisturbed run may have compiled something, or had to wait
                    self.seconds[name] = min(self.seconds[name], time.monotonic() - began)
            if code == 0:
                return
            # What may change between two runs of the same command changes here.
        self._end(name, self._start(name, out), "left in peace after strikes", (0,))

    def _start(self, name: str, out: Path) -> Child:
        self.tally.runs += 1
        return start(run_quickly, KINDS[name].arguments(self.work, out), out.with_suffix(".log"))

    def _end(self, name: str, child: Child, when: str, right: tuple[int, ...]) -> int | None:
        """Wait for a command's end, and enter it if it is a wrong one."""
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
        if "Traceback" in log.read_text("utf-8", "replace"):
            self.tally.misbehaved.append(f"{log}: a traceback")
        try:
            KINDS[name].compare(self.work / f"whole-{name}", out, self.tally.differences)
        except (OSError, ValueError) as error:
            self.tally.differences.files.append(f"{out}: {error}")


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
    print(f"rows lost: {tally.differences.lost}, rows doubled: {tally.differences.doubled}")
    print("results differing:", *tally.differences.files or [0], sep="\n" if tally.differences.files else " ")
    print("misbehaved:", *tally.misbehaved or [0], sep="\n" if tally.misbehaved else " ")
    raise SystemExit(1 if tally.differences or tally.misbehaved else 0)


if __name__ == "__main__":
    main()
