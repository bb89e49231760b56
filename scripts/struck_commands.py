"""The commands that `torture.py` interrupts: how each is prepared, started, interrupted and compared."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import changing_inputs
import psutil
from clean_process import Child, run_command
from comparisons import Differences, compare_audits, compare_files, compare_labs

from ltmia.evaluation.audit_folder import MARKED
from ltmia.folders import mark_folder
from ltmia.ownership import Marker

N_MEMBERS, N_NONMEMBERS = 30, 40
N_RESAMPLES = 20
N_TREES = 5
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
        """Exit codes of a command that was done already, that says it was interrupted, or that the signal killed."""
        return (0,) if self.victim == "worker" else (0, 2, -self.signal)


def workers_of(lab: int) -> list[int]:
    """List the worker processes of a lab."""
    try:
        return [p.pid for p in psutil.Process(lab).children() if "spawn_main" in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


STRIKES = (Strike(signal.SIGINT), Strike(signal.SIGTERM), Strike(signal.SIGKILL, "group"))
OF_LABS = (*STRIKES, Strike(signal.SIGKILL), Strike(signal.SIGKILL, "worker"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of command: how it is begun, struck and judged."""

    share: float
    """Part of the strikes that it gets."""
    arguments: Callable[[Path, Path], list[str]]
    """Returns the command's arguments, given the folder of all work and that of its results."""
    compare: Callable[[Path, Path, Differences], None]
    lay_out: Callable[[Path, Path], object] = lambda _work, out: out.mkdir()
    """Makes the folder of results that the command begins with; same arguments."""
    strikes: Sequence[Strike] = STRIKES
    change: Callable[[Path, random.Random], str] | None = None
    """Changes one thing of the inputs, given the folder of results; returns what."""
    lay_out_anew: Callable[[Path], Path] | None = None
    """Makes an empty folder of results whose inputs are those of the given one; needed where inputs change."""


def _pair(work: Path) -> list[str]:
    from ltmia.data.embedded import demo_base_path

    return [str(work / "target"), "--base", str(demo_base_path()), "--max-length", "24", "--batch-size", "2"]


def _texts(work: Path, out: Path, first: str) -> list[str]:
    sides = [first, str(work / "members.jsonl"), "--nonmembers", str(work / "nonmembers.jsonl")]
    return [*sides, "-o", str(out), "--quiet"]


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


def with_salt(kind: str, out: Path) -> None:
    """Prepare a folder for an audit or a score. All have the same salt, so their ids can be compared."""
    (out / "private").mkdir(parents=True)
    (out / "private" / "salt").write_text("5a" * 32, "utf-8")
    mark_folder(out, Marker(kind=MARKED[kind]))


def audit_of_changing_inputs(work: Path, out: Path) -> None:
    """Lay out an audit of an adapter, with inputs of its own."""
    changing_inputs.lay_out(work, out)
    with_salt("audit", out)


def audit_anew(out: Path) -> Path:
    """Lay out a second audit of the same inputs."""
    fresh = changing_inputs.fresh_folder(out)
    with_salt("audit", fresh)
    return fresh


def copy_audit(work: Path, out: Path) -> None:
    """Lay out a finished audit without its page."""
    shutil.copytree(work / "whole-audit", out)
    (out / "report.html").unlink()


KINDS: Mapping[str, Kind] = {
    "audit": Kind(
        share=0.4,
        arguments=lambda _, out: changing_inputs.arguments(out),
        compare=compare_audits,
        lay_out=audit_of_changing_inputs,
        change=changing_inputs.change,
        lay_out_anew=audit_anew,
    ),
    "score": Kind(share=0.25, arguments=score, compare=compare_audits, lay_out=lambda _, out: with_salt("score", out)),
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
    """Run a command with few resamples and trees, because exact intervals and controls do not matter here."""
    import ltmia.evaluation.controls
    import ltmia.evaluation.intervals

    ltmia.evaluation.controls.N_TREES = N_TREES
    ltmia.evaluation.intervals.measure_attack.__kwdefaults__["n_resamples"] = N_RESAMPLES
    run_command(*arguments)
