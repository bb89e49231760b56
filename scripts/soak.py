"""Score very many short texts: does memory stay flat, does time grow linearly, and can a killed run be resumed?

    python scripts/soak.py OUT --texts 100000

Runs `ltmia score` on a tiny model in a process of its own and kills it once a third of the token rows are on disk; the
same command then resumes. The script reads memory and processor time all the while, and prints what it found. It exits
with 1 if a row is lost or doubled, if late texts take more time than early ones, or if memory grows with the store.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from clean_process import COMMANDS, preload, run_command, start
from torture import empty_folder

from ltmia.evaluation.files import read_results
from ltmia.features.packing import row_width
from ltmia.features.store import FeatureStore
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import save_model

WORDS = (
    "lot",
    "crate",
    "lamp",
    "map",
    "coast",
    "snow",
    "pier",
    "letter",
    "cargo",
    "rope",
    "tide",
    "gate",
    "moss",
    "bell",
)
N_WORDS = 5
MOST_BYTES_PER_TEXT = 2_500
"""Memory a text may leave behind: its scores and its place in the store."""
WARM_UP_BYTES = 64 * 2**20
"""Growth that the texts do not cause: libraries loaded on first use, and memory that an allocator keeps."""
FEWEST_READINGS = 9
"""Three for each third of the run; with fewer, growth cannot be measured."""
READING_SECONDS = 0.05
"""Between two readings."""
END_SECONDS = 300
"""A killed process that takes longer to end hangs."""
IDLE_SECONDS = 600
"""A process that adds no row for so long hangs; evaluation at the end included."""
MOST_SLOWER = 1.5
"""Limit on the cost of a text in the last third divided by that in the first; a machine is never quite steady."""


@dataclass
class Watch:
    """What a process took while it filled its store."""

    rows: list[int] = field(default_factory=list)
    """Token rows on disk."""
    memory: list[int] = field(default_factory=list)
    """Resident bytes."""
    seconds: list[float] = field(default_factory=list)
    """Processor time."""
    peak: int = 0
    """Resident bytes at most, over the whole run."""

    def read(self, process: psutil.Process, rows: int) -> bool:
        """Take a reading; only those with new rows count as filling the store. Say whether there were any."""
        times, resident = process.cpu_times(), process.memory_info().rss
        self.peak = max(self.peak, resident)
        is_new = rows > (self.rows[-1] if self.rows else 0)
        if is_new:
            self.rows.append(rows)
            self.memory.append(resident)
            self.seconds.append(times.user + times.system)
        return is_new

    def slope(self, values: list[float] | list[int], part: slice) -> float:
        """Return the growth of some values per token row, over a part of the readings."""
        return float(np.polyfit(self.rows[part], values[part], 1)[0])


def prepare(work: Path, n_texts: int) -> None:
    """Write two models of one layer, candidates, and a tenth as many non-members."""
    rng = np.random.default_rng(0)
    lines = [" ".join(words) + f" {i}" for i, words in enumerate(rng.choice(WORDS, (n_texts, N_WORDS)))]
    tokenizer = train_tokenizer(lines[:2000], 300)
    for name, seed in (("target", 1), ("base", 2)):
        shape = TinyConfig(model_type="gpt2", vocab_size=300, hidden_size=16, n_layers=1, n_heads=2)
        save_model(build_base(shape, seed=seed), tokenizer, work / name)
    cut = n_texts - n_texts // 10
    for name, part in (("candidates", lines[:cut]), ("nonmembers", lines[cut:])):
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in part), "utf-8")


def watched(arguments: list[str], work: Path, kill_at: int | None) -> Watch:
    """Run a command to its end, or until `kill_at` token rows are on disk, reading what it takes."""
    watch, tokens = Watch(), work / "out" / "private" / "store" / "tokens.f16"
    child = start(run_command, arguments, work / "log")
    process, code, latest = psutil.Process(child.pid), None, time.monotonic()
    while code is None:
        rows = tokens.stat().st_size // (2 * row_width(20)) if tokens.exists() else 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it may just have ended
            latest = time.monotonic() if watch.read(process, rows) else latest
        if time.monotonic() - latest > IDLE_SECONDS:
            raise SystemExit(f"no row for {IDLE_SECONDS} s; it stood at\n{child.where_it_hangs()}")
        due = kill_at is not None and rows >= kill_at
        if due:
            os.kill(child.pid, signal.SIGKILL)
        code = child.ended(END_SECONDS if due else READING_SECONDS)
    expected = 0 if kill_at is None else -signal.SIGKILL
    if code != expected:
        raise SystemExit(f"exit code {code} instead of {expected}: {(work / 'log').read_text('utf-8')[-2000:]}")
    return watch


def faults(work: Path, n_texts: int, watch: Watch) -> list[str]:
    """Say what is wrong with rows, memory and time."""
    store, records = FeatureStore(work / "out" / "private" / "store"), pq.read_table(work / "out" / "records.parquet")
    data = read_results(work / "out").data
    found = []
    if not len(store) == len(records) == len(set(records["id"].to_pylist())) == n_texts:
        found.append(f"{len(store)} texts in the store, {len(records)} records, of {n_texts}")
    if data.n_unscorable or np.isnan(records["score_difference"].to_numpy()).any():
        found.append(f"{data.n_unscorable} texts not scored")
    if len(watch.rows) < FEWEST_READINGS:
        return [*found, f"{len(watch.rows)} readings say nothing about growth: take more than {n_texts} texts"]
    third = len(watch.rows) // 3
    early, late = (watch.slope(watch.seconds, part) for part in (slice(0, third), slice(-third, None)))
    per_row = len(store) / store.manifest["n_tokens"]
    kept = watch.slope(watch.memory, slice(third, None)) / per_row
    print(f"processor time of a text: {early / per_row * 1e3:.2f} ms early, {late / per_row * 1e3:.2f} ms late")
    print(f"memory while scoring: {watch.memory[0] / 2**20:.0f} to {watch.memory[-1] / 2**20:.0f} MiB, ", end="")
    print(f"{kept:.0f} bytes a text kept; {watch.peak / 2**20:.0f} MiB at most, evaluation included")
    if late > MOST_SLOWER * early:
        found.append("late texts cost more than early ones")
    if kept * n_texts > MOST_BYTES_PER_TEXT * n_texts + WARM_UP_BYTES:
        found.append("memory grows with what is on disk")
    return found


def main() -> None:
    """Prepare, kill, go on, and compare."""
    parser = argparse.ArgumentParser(description="Score very many short texts; kill and go on once.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=100_000)
    args = parser.parse_args()
    empty_folder(args.out)
    work = args.out.resolve()
    preload(*COMMANDS)
    prepare(work, args.texts)
    arguments = ["score", str(work / "target"), "--base", str(work / "base"), "--attack", "difference", "--quiet"]
    arguments += ["--candidates", str(work / "candidates.jsonl"), "--nonmembers", str(work / "nonmembers.jsonl")]
    arguments += ["--max-length", "16", "--batch-size", "64", "-o", str(work / "out")]
    began = time.monotonic()
    killed = watched(arguments, work, kill_at=args.texts * N_WORDS // 3)
    rows = killed.rows[-1]
    watch = watched(arguments, work, kill_at=None)
    print(
        f"{args.texts} texts in {time.monotonic() - began:.0f} s, {watch.seconds[-1]:.0f} s of processor after the kill"
    )
    print(f"killed at {rows} token rows, went on at {watch.rows[0]}")
    found = faults(work, args.texts, watch)
    if watch.rows[0] < rows:
        found.append("rows on disk were computed again")
    print(f"faults: {found or 0}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
