"""What helps against leakage, measured before and after: python benchmarks/what_helps.py OUT.

Fine-tunes the embedded base on the demo's 500 members in several ways, audits each against the same 1,000 non-members,
and compares them. OUT keeps every model and audit; the figures go to OUT/what_helps.json.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.evaluation.results import Measure
from ltmia.records import Texts

REPEATED, TIMES = 100, 5
"""So many of the members stand in `repeated.jsonl` that many times."""
TRAIN = "ltmia finetune {base} --texts {texts}.jsonl --learning-rate 8e-4 --seed 0"
DP_SCRIPT = Path(__file__).with_name("dp_lora.py")
# before, after: names of ways to train. The first is what the others are held against.
WAYS = {
    "plain": TRAIN.format(base="{base}", texts="members") + " --epochs 3",
    "one_epoch": TRAIN.format(base="{base}", texts="members") + " --epochs 1",
    "lora": TRAIN.format(base="{base}", texts="members") + " --epochs 3 --lora",
    "repeats": TRAIN.format(base="{base}", texts="repeated") + " --epochs 3",
    "dp": f"python {DP_SCRIPT} {{base}} members.jsonl --epsilon 8",
}
CHANGES = (
    ("fewer_epochs", "plain", "one_epoch"),
    ("lora", "plain", "lora"),
    ("deduplicate", "repeats", "plain"),
    ("dp", "plain", "dp"),
)


def main() -> None:
    """Train, audit, compare, and write the figures."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write_texts(out)
    base = str(demo_base_path())
    for name, command in WAYS.items():
        if not (out / name).is_dir():
            run(f"{command.format(base=base)} -o {name}", out)
        if not (out / f"audit-{name}" / "results.json").is_file():
            run(
                f"ltmia audit {name} --base {base} --members members.jsonl --nonmembers nonmembers.jsonl "
                f"--group-column group --attacks ltmia,loss --dtype float32 -o audit-{name} --quiet",
                out,
            )
    figures = {
        "ways": {name: {"command": WAYS[name].format(base="BASE"), **figures_of(out, name)} for name in WAYS},
        "changes": {name: change(out, before, after) for name, before, after in CHANGES},
    }
    (out / "what_helps.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def write_texts(out: Path) -> None:
    """Write members, non-members, and members of which some are repeated."""
    texts = demo_texts()
    drawn = draw_membership(texts, n_members=500, n_nonmembers=1000, n_validation=0, seed=0)
    members = texts.take(drawn.members)
    write_lines(out / "members.jsonl", members)
    write_lines(out / "nonmembers.jsonl", texts.take(drawn.nonmembers))
    rows = [*range(len(members)), *np.repeat(np.arange(REPEATED), TIMES - 1).tolist()]
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
    subprocess.run(shlex.split(command), cwd=folder, check=True)


def figures_of(out: Path, name: str) -> dict[str, object]:
    """Return what one audit says, and how well the model does on texts it never saw."""
    results, records = read_results(out / f"audit-{name}"), read_records(out / f"audit-{name}")
    judged = results.attacks[results.decisions.attack]
    log_likelihood = records["score_loss"].to_numpy()[records["label"].to_numpy() == 0]
    return {
        "auc": measured(judged.auc),
        "tpr_at_1_percent": measured(judged.tpr_at_fpr["0.01"]),
        "n_flagged": results.decisions.n_flagged,
        "n_judged": results.decisions.n_judged,
        "held_out_loss": round(float(-np.nanmean(log_likelihood)), 3),
    }


def change(out: Path, before: str, after: str) -> dict[str, object]:
    """Return the paired difference between two audits."""
    first, second = (
        (read_results(out / f"audit-{name}"), read_records(out / f"audit-{name}")) for name in (before, after)
    )
    compared = compare_audits(first, second)
    return {"before": before, "after": after, "auc": measured(compared.auc), "lower": compared.lower_leakage}


def measured(measure: Measure) -> list[float | None]:
    """Return value, low, high to three digits."""
    return [None if v is None else round(v, 3) for v in (measure.value, measure.low, measure.high)]


if __name__ == "__main__":
    main()
