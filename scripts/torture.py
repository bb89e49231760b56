"""Interrupt audits, scorings, reports, trainings and labs at random moments, and compare what they come to.

    python scripts/torture.py OUT --kills 200 --seed 0

Each round runs one command in an empty folder and strikes it with SIGINT, SIGTERM or SIGKILL again and again, until it
has got through; then its files are compared with those of an undisturbed run, but for what tells of time. Commands run
in children forked from a process that has the libraries loaded, so that a strike costs work and not imports; only a
lab's workers load them anew. The work is small, and intervals rest on few resamples: what is asked is whether two runs
come to the same. Exits 1 unless all of it is zero.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from kill_lab import Figures, compare

import ltmia.audit.audit
import ltmia.audit.score
import ltmia.cli.app
import ltmia.evaluation.intervals
import ltmia.lab.evaluate
import ltmia.lab.run
from ltmia.__main__ import main as run_ltmia
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.finetuning.perturbed import save_perturbed
from ltmia.folders import mark_folder
from ltmia.ownership import Marker, check_folder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STRIKES = 4
"""Most strikes of one round: then it may finish."""
SHARES = {"audit": 0.45, "score": 0.25, "lab": 0.1, "train": 0.1, "report": 0.1}
"""Part of the strikes that each kind of command gets. Training reads what the lab made, reports what the audit did."""
N_MEMBERS, N_NONMEMBERS = 30, 40
N_RESAMPLES = 20
TIME_FIELDS = ("created", "timing", "command", "environment")
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


@dataclass
class Tally:
    """What the strikes did."""

    runs: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    differing: list[str] = field(default_factory=list)
    """Files that differ from those of the undisturbed run, or are left over."""
    misbehaved: list[str] = field(default_factory=list)
    """Wrong exit codes, tracebacks, hangs."""

    @property
    def is_clean(self) -> bool:
        """Whether no strike left a trace."""
        return not (self.lost or self.doubled or self.differing or self.misbehaved)


def prepare(work: Path) -> None:
    """Write models and texts: the target is the embedded base moved a little."""
    save_perturbed(demo_base_path(), work / "target")
    texts = demo_texts()
    for name, rows in (("members", range(N_MEMBERS)), ("nonmembers", range(N_MEMBERS, N_MEMBERS + N_NONMEMBERS))):
        lines = [json.dumps({"id": texts.ids[i], "text": texts.texts[i]}) for i in rows]
        (work / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    (work / "lab.toml").write_text(RECIPE)


def command(kind: str, work: Path, out: Path) -> list[str]:
    """Return the arguments of one kind of command."""
    models = [str(work / "target"), "--base", str(demo_base_path()), "--max-length", "24", "--batch-size", "2"]
    files = ["--nonmembers", str(work / "nonmembers.jsonl"), "-o", str(out), "--quiet"]
    if kind == "audit":
        return [
            "audit",
            *models,
            "--attacks",
            "ltmia,difference,lowercase",
            "--members",
            str(work / "members.jsonl"),
            *files,
        ]
    if kind == "score":
        return ["score", *models, "--candidates", str(work / "members.jsonl"), *files]
    if kind == "train":
        return [
            "train",
            str(next((work / "whole-lab" / "stores").iterdir())),
            "-o",
            str(out / "classifier"),
            "--epochs",
            "8",
            "--quiet",
        ]
    if kind == "lab":
        return ["lab", "run", str(work / "lab.toml"), "-o", str(out), "--workers", "1", "--quiet"]
    return ["report", str(out)]


def start(arguments: list[str], log: Path) -> int:
    """Fork a child that runs one command; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["ltmia", *arguments]
        run_ltmia()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Wait for a child; return its exit code (negative: a signal), or None if it still runs."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def disturbed(arguments: list[str], log: Path, seconds: float, chance: random.Random, tally: Tally, kills: int) -> None:
    """Run one command to its end, striking it as long as strikes are due."""
    for left in range(kills, -1, -1):
        tally.runs += 1
        child = start(arguments, log)
        code = ended(child, chance.uniform(0, seconds)) if left else None
        if code is None and left:
            kind = chance.choice(SIGNALS)
            os.killpg(os.getpgid(child), kind) if kind == signal.SIGKILL else os.kill(child, kind)
            tally.strikes[kind.name] += 1
            code = ended(child, LIMIT_SECONDS)
            # It may have been done already, or say so and exit 2, or die of the signal.
            if code not in (0, 2, -kind):
                tally.misbehaved.append(f"{log.stem}: exit code {code} after {kind.name}")
            if code != 0:
                continue
        code = ended(child, LIMIT_SECONDS) if code is None else code
        if code != 0:
            tally.misbehaved.append(f"{log.stem}: exit code {code} when left in peace")
        return


def compare_audits(whole: Path, found: Path, tally: Tally) -> None:
    """Compare results, records and store of two audits or scorings."""
    ours, theirs = (json.loads((folder / "results.json").read_text("utf-8")) for folder in (found, whole))
    for key in sorted(set(ours) | set(theirs)):
        if key not in TIME_FIELDS and ours.get(key) != theirs.get(key):
            tally.differing.append(f"{found.name}/results.json: {key}")
    rows, wanted = (pq.read_table(folder / "records.parquet") for folder in (found, whole))
    ids, expected = (Counter(table["id"].to_pylist()) for table in (rows, wanted))
    tally.lost += (expected - ids).total()
    tally.doubled += (ids - expected).total()
    if not rows.equals(wanted) and str(rows.to_pydict()) != str(wanted.to_pydict()):  # NaN is not NaN
        tally.differing.append(f"{found.name}/records.parquet")
    compare_files(whole, found, tally, ("records.parquet", "report.html", "results.json", "manifest.json"))


def compare_files(whole: Path, found: Path, tally: Tally, except_for: tuple[str, ...] = ()) -> None:
    """Compare all files of two folders byte for byte."""
    ours, theirs = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (found, whole))
    tally.differing += [f"{found.name}/{path}: missing or left over" for path in sorted(ours ^ theirs)]
    for path in sorted(ours & theirs):
        if path.name not in except_for and (found / path).read_bytes() != (whole / path).read_bytes():
            tally.differing.append(f"{found.name}/{path}")


def compare_labs(whole: Path, found: Path, tally: Tally) -> None:
    """Compare the stores of two labs."""
    figures = Figures()
    compare(whole, found, figures)
    tally.lost += figures.lost
    tally.doubled += figures.doubled
    tally.differing += figures.differing + figures.left_over


COMPARISONS: Mapping[str, Callable[[Path, Path, Tally], None]] = {
    "audit": compare_audits,
    "score": compare_audits,
    "report": compare_files,
    "train": compare_files,
    "lab": compare_labs,
}


def empty_folder(out: Path) -> None:
    """Give an empty folder to the script; only one that it filled itself is emptied."""
    marker = Marker(kind=f"what {Path(sys.argv[0]).name} left")
    check_folder(out, marker, overwrite=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark_folder(out, marker)


def undisturbed(kind: str, work: Path) -> float:
    """Run one kind of command in peace; return its seconds."""
    out = work / f"whole-{kind}"
    if kind == "report":
        shutil.copytree(work / "whole-audit", out)
    out.mkdir(exist_ok=True)
    log, began = work / f"whole-{kind}.log", time.monotonic()
    code = ended(start(command(kind, work, out), log), LIMIT_SECONDS)
    if code != 0:
        raise SystemExit(f"{log}: the undisturbed run ended with exit code {code}")
    return time.monotonic() - began


def rounds(kind: str, args: argparse.Namespace, kills: int, until: float, tally: Tally) -> None:
    """Strike one kind of command until enough strikes have fallen, or time is over."""
    work, chance = args.out, random.Random(f"{args.seed} {kind}")
    seconds, struck, number = undisturbed(kind, work), 0, 0
    while struck < kills and time.monotonic() < until:
        number += 1
        out, log = work / f"{kind}-{number}", work / f"{kind}-{number}.log"
        if kind == "report":
            shutil.copytree(work / "whole-audit", out)
            (out / "report.html").unlink()
        out.mkdir(exist_ok=True)
        before = tally.strikes.total()
        disturbed(command(kind, work, out), log, seconds, chance, tally, min(STRIKES, kills - struck))
        struck += tally.strikes.total() - before
        try:
            COMPARISONS[kind](work / f"whole-{kind}", out, tally)
        except (OSError, ValueError) as error:
            tally.differing.append(f"{out.name}: {error}")
        if re.search("Traceback", log.read_text("utf-8", "replace")):
            tally.misbehaved.append(f"{log}: a traceback")
        else:
            shutil.rmtree(out)
    print(f"{kind}: {struck} strikes in {number} rounds, {seconds:.1f} s undisturbed", flush=True)


def main() -> None:
    """Strike every kind of command, and say what was found."""
    parser = argparse.ArgumentParser(description="Interrupt commands at random moments; compare what they come to.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="Strikes in all.")
    parser.add_argument("--kinds", default=",".join(SHARES), help="Commands to strike, with commas.")
    parser.add_argument("--seconds", type=float, default=1200, help="No round begins later.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    empty_folder(args.out)
    tally, until = Tally(), time.monotonic() + args.seconds
    ltmia.evaluation.intervals.measure_attack.__kwdefaults__["n_resamples"] = N_RESAMPLES
    prepare(args.out)
    shares = {kind: SHARES[kind] for kind in args.kinds.split(",")}
    for kind, share in shares.items():
        rounds(kind, args, round(args.kills * share / sum(shares.values())), until, tally)
    print(f"runs: {tally.runs}, kills: {tally.strikes.total()} ({dict(tally.strikes)})")
    print(f"rows lost: {tally.lost}, rows doubled: {tally.doubled}")
    print(f"results differing: {tally.differing or 0}, misbehaved: {tally.misbehaved or 0}")
    raise SystemExit(0 if tally.is_clean else 1)


if __name__ == "__main__":
    main()
