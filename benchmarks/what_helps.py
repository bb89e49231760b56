"""What helps against leakage, measured before and after: python benchmarks/what_helps.py OUT [options].

Fine-tunes the embedded base on 500 embedded texts in several ways, audits each against the same 1,000 non-members, and
compares them. OUT keeps every model and audit; the figures go to OUT/what_helps.json.
"""

import argparse
import contextlib
import json
import shlex
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.records import Texts

SHARE_REPEATED, TIMES = 5, 5
"""The first fifth of the members stands in `repeated.jsonl` five times."""
TRAIN = "ltmia finetune {base} --texts {texts}.jsonl --learning-rate 8e-4 --seed 0"
# Private training learns slowly: more epochs, larger batches.
WAYS = {
    "plain": TRAIN.format(base="{base}", texts="members") + " --epochs 3",
    "one_epoch": TRAIN.format(base="{base}", texts="members") + " --epochs 1",
    "lora": TRAIN.format(base="{base}", texts="members") + " --epochs 3 --lora",
    "repeats": TRAIN.format(base="{base}", texts="repeated") + " --epochs 3",
    "dp": "ltmia finetune {base} --texts members.jsonl --learning-rate 2e-3 --batch-size 50 --seed 0 --epochs 10 "
    "--lora --epsilon 8",
}
CHANGES = (
    ("fewer_epochs", "plain", "one_epoch", False),
    ("lora", "plain", "lora", False),
    ("deduplicate", "repeats", "plain", True),
    ("dp", "plain", "dp", False),
)
"""Name, way before, way after, and whether they are judged on the repeated members only."""


def main() -> None:
    """Train, audit, compare, and write the figures."""
    names = [name for name, *_ in CHANGES]
    parser = argparse.ArgumentParser(description="What helps against leakage, measured before and after.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int, default=500, help="Texts to fine-tune on; twice as many are held out.")
    parser.add_argument("--changes", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    write_texts(out, args.members)
    base = str(demo_base_path())
    changes = [change for change in CHANGES if change[0] in args.changes]
    for name, command in wanted(changes).items():
        if not (out / name).is_dir():
            run(f"{command.format(base=base)} -o {name}", out)
        if not (out / f"audit-{name}" / "results.json").is_file():
            run(
                f"ltmia audit {name} --base {base} --members members.jsonl --nonmembers nonmembers.jsonl "
                f"--group-column group --attacks ltmia,loss --dtype float32 -o audit-{name} --quiet",
                out,
            )
    repeated = args.members // SHARE_REPEATED
    figures = {
        name: change(out, before, after, repeated if on_repeated else None)
        for name, before, after, on_repeated in changes
    }
    (out / "what_helps.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def wanted(changes: Collection[tuple[str, str, str, bool]]) -> dict[str, str]:
    """Return the ways that some changes compare."""
    compared = {way for _, before, after, _ in changes for way in (before, after)}
    return {name: command for name, command in WAYS.items() if name in compared}


def write_texts(out: Path, n_members: int) -> None:
    """Write members, non-members, and members of which some are repeated."""
    texts = demo_texts()
    drawn = draw_membership(texts, n_members=n_members, n_nonmembers=2 * n_members, n_validation=0, seed=0)
    members = texts.take(drawn.members)
    write_lines(out / "members.jsonl", members)
    write_lines(out / "nonmembers.jsonl", texts.take(drawn.nonmembers))
    rows = [*range(len(members)), *np.repeat(np.arange(n_members // SHARE_REPEATED), TIMES - 1).tolist()]
    write_lines(out / "repeated.jsonl", members.take(rows))


def write_lines(path: Path, texts: Texts) -> None:
    """Write one JSON line per text; ids only number the lines."""
    groups = texts.groups or texts.ids
    lines = [
        json.dumps({"id": f"{i}", "text": text, "group": group})
        for i, (text, group) in enumerate(zip(texts.texts, groups, strict=True))
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def run(command: str, folder: Path) -> None:
    """Run a command line where the files are, showing it."""
    print("$", command, flush=True)
    with contextlib.chdir(folder):
        app(shlex.split(command)[1:], standalone_mode=False)


def change(out: Path, before: str, after: str, n_first: int | None) -> dict[str, object]:
    """Return what two audits say, and the paired difference between them."""
    audits = [read_audit(out / f"audit-{name}", n_first) for name in (before, after)]
    compared = compare_audits(*audits)
    figures = [
        {"command": WAYS[name].format(base="BASE"), **figures_of(*audit)}
        for name, audit in zip((before, after), audits, strict=True)
    ]
    return {
        "before": figures[0],
        "after": figures[1],
        "auc_difference": measured(compared.auc),
        "lower": compared.lower_leakage,
    }


def read_audit(folder: Path, n_first: int | None) -> tuple[Results, pa.Table]:
    """Read an audit; of its members, which come first, only some where a number is given."""
    records = read_records(folder)
    row, labels = np.arange(records.num_rows), records["label"].to_numpy()
    return read_results(folder), records.filter((labels == 0) | (row < (n_first or len(row))))


def figures_of(results: Results, records: pa.Table) -> dict[str, object]:
    """Return what an audit says of these records, and how well the model does on texts it never saw."""
    labels, log_likelihood = records["label"].to_numpy(), records["score_loss"].to_numpy()
    scores = records[f"score_{results.decisions.attack}"].to_numpy()
    _, groups = np.unique(records["group"].to_pylist(), return_inverse=True)
    found = measure_attack(
        scores[labels == 1],
        scores[labels == 0],
        member_groups=groups[labels == 1],
        nonmember_groups=groups[labels == 0],
    )
    return {
        "auc": measured(found.auc),
        "tpr_at_1_percent": measured(found.tpr("0.01")),
        "n_flagged": int((records["flagged"].to_numpy(zero_copy_only=False) & (labels == 1)).sum()),
        "n_members": int((labels == 1).sum()),
        "held_out_loss": round(float(-np.nanmean(log_likelihood[labels == 0])), 3),
    }


def measured(measure: Measure) -> list[float | None]:
    """Return value, low, high to three digits."""
    return [None if v is None else round(v, 3) for v in (measure.value, measure.low, measure.high)]


if __name__ == "__main__":
    main()
