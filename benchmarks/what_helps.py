"""What helps against leakage, measured before and after: python benchmarks/what_helps.py OUT [options].

Fine-tunes the embedded base on 500 embedded texts in several ways, alters some of the fine-tunes, audits each against
the same 1,000 non-members, and compares them for attackers who see log-probabilities and for those who hold the
weights. OUT keeps every model and audit, without the gradients (0.6 GB each). The figures go to OUT/what_helps.json and
are printed as two tables: of the changes, and of the models.
"""

import argparse
import contextlib
import json
import shlex
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altered
import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ltmia.attacks.table import LEARNED, WITH_WEIGHTS
from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.calibration import judge_audit
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure
from ltmia.records import Texts

OBSERVERS = {"log-probabilities": LEARNED, "weights": WITH_WEIGHTS}
"""What an attacker sees, and the attack that decides for it."""
SHARE_REPEATED, TIMES = 5, 5
"""The first fifth of the members stands in `repeated.jsonl` five times."""
N_OTHERS = 3
"""Fine-tunes of other texts, which are averaged with that of the members."""
FINETUNE = "ltmia finetune {base} --seed 0 "
STRONG = FINETUNE + "--texts members.jsonl --learning-rate 8e-4"
# So gentle that either attacker can still gain and lose.
GENTLE = FINETUNE + "--texts members.jsonl --learning-rate 3e-4 --epochs 1"
WAYS = {
    "plain": f"{STRONG} --epochs 3",
    "one_epoch": f"{STRONG} --epochs 1",
    "lora": f"{STRONG} --epochs 3 --lora",
    "repeats": FINETUNE + "--texts repeated.jsonl --learning-rate 8e-4 --epochs 3",
    # Private training learns slowly: more epochs, larger batches.
    "dp": FINETUNE + "--texts members.jsonl --learning-rate 2e-3 --batch-size 50 --epochs 10 --lora --epsilon 8",
    "gentle": GENTLE,
    "slower": FINETUNE + "--texts members.jsonl --learning-rate 2e-4 --epochs 1",
    "batch_64": f"{GENTLE} --batch-size 64",
    "batch_64_scaled": FINETUNE + "--texts members.jsonl --learning-rate 1.2e-3 --epochs 1 --batch-size 64",
    **{
        f"other_{i}": FINETUNE + f"--texts others-{i}.jsonl --learning-rate 3e-4 --epochs 1"
        for i in range(1, N_OTHERS + 1)
    },
    "average": "python benchmarks/altered.py average gentle other_1 other_2 other_3",
    "noise_1": "python benchmarks/altered.py noise gentle --base {base} --size 1",
    "noise_4": "python benchmarks/altered.py noise gentle --base {base} --size 4",
    "int8": 'python benchmarks/altered.py round gentle --to "int8 by row"',
    "4_bit": 'python benchmarks/altered.py round gentle --to "4 bit by 32"',
}
"""By name, the command that makes a model; a model that it names is made first."""
AUDIT = (
    "ltmia audit {way} --base {base} --members members.jsonl --nonmembers nonmembers.jsonl --group-column group "
    "--attacks ltmia,loss --observer weights --max-length 128 --dtype float32 -o audit-{way} --quiet"
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two ways to make a model: the second is to leak less."""

    title: str
    before: str
    after: str
    on_repeated: bool = False
    """Whether only the repeated members are judged."""


CHANGES = {
    "deduplicate": Change(title="Remove repeats", before="repeats", after="plain", on_repeated=True),
    "fewer_epochs": Change(title="1 epoch instead of 3", before="plain", after="one_epoch"),
    "lora": Change(title="LoRA instead of all weights", before="plain", after="lora"),
    "dp": Change(title="LoRA with differential privacy (ε = 8)", before="plain", after="dp"),
    "slower": Change(title="Learning rate 2e-4 instead of 3e-4", before="gentle", after="slower"),
    "batch": Change(title="Batches of 64 instead of 16", before="gentle", after="batch_64"),
    "batch_scaled": Change(title="Batches of 64, learning rate x 4", before="gentle", after="batch_64_scaled"),
    "average": Change(title="Average with 3 fine-tunes of other texts", before="gentle", after="average"),
    "noise_1": Change(title="Noise as large as the change of the weights", before="gentle", after="noise_1"),
    "noise_4": Change(title="Noise 4 times as large", before="gentle", after="noise_4"),
    "int8": Change(title="Weights rounded to int8", before="gentle", after="int8"),
    "4_bit": Change(title="Weights rounded to 4 bits", before="gentle", after="4_bit"),
}


def main() -> None:
    """Train, alter, audit, compare; write the figures and print them."""
    parser = argparse.ArgumentParser(description="What helps against leakage, measured before and after.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int, default=500, help="Texts to fine-tune on; twice as many are held out.")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    groups = write_texts(out, args.members)
    changes = {name: CHANGES[name] for name in args.changes}
    audited = {way for change in changes.values() for way in (change.before, change.after)}
    base = str(demo_base_path())
    for name, command in needed(audited).items():
        if not (out / name).is_dir():
            run(f"{command.format(base=base)} -o {name}", out)
        if name in audited and not (out / f"audit-{name}" / "results.json").is_file():
            run(AUDIT.format(base=base, way=name), out)
            shutil.rmtree(out / f"audit-{name}" / "private" / "gradients")
    repeated = args.members // SHARE_REPEATED
    figures = {name: compared(out, change, groups, repeated) for name, change in changes.items()}
    (out / "what_helps.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print("\n".join([*table_of_changes(figures), "", *table_of_models(figures, args.members)]))


def needed(ways: Collection[str]) -> dict[str, str]:
    """Return the commands that make these models, and those that make the models they are made of."""
    parts = {word for way in ways for word in shlex.split(WAYS[way])}
    return {name: command for name, command in WAYS.items() if name in ways or name in parts}


def write_texts(out: Path, n_members: int) -> Int64[np.ndarray, " texts"]:
    """Write members, non-members, members of which some are repeated, and others; return the audit's groups as numbers.

    The others are the embedded texts that are left, in equal parts. They come from the documents of members and of
    non-members alike, since whole documents go to one of these two sides, and of either side a part is left.
    """
    texts = demo_texts()
    drawn = draw_membership(texts, n_members=n_members, n_nonmembers=2 * n_members, n_validation=0, seed=0)
    members, nonmembers = texts.take(drawn.members), texts.take(drawn.nonmembers)
    write_lines(out / "members.jsonl", members)
    write_lines(out / "nonmembers.jsonl", nonmembers)
    rows = [*range(len(members)), *np.repeat(np.arange(n_members // SHARE_REPEATED), TIMES - 1).tolist()]
    write_lines(out / "repeated.jsonl", members.take(rows))
    left = np.setdiff1d(np.arange(len(texts)), [*drawn.members, *drawn.nonmembers])
    for i in range(N_OTHERS):
        write_lines(out / f"others-{i + 1}.jsonl", texts.take(left[i::N_OTHERS][:n_members]))
    return np.unique([*(members.groups or ()), *(nonmembers.groups or ())], return_inverse=True)[1]


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
    program, *words = shlex.split(command)
    with contextlib.chdir(folder):
        if program == "ltmia":
            app(words, standalone_mode=False)
        else:
            altered.main(words[1:])


def compared(out: Path, change: Change, groups: Int64[np.ndarray, " texts"], n_repeated: int) -> dict[str, Any]:
    """Return what two audits say, and the paired difference between them."""
    folders = [out / f"audit-{way}" for way in (change.before, change.after)]
    audits = [(read_results(folder), read_records(folder)) for folder in folders]
    labels = audits[0][1]["label"].to_numpy()
    judged = (labels == 0) | (np.arange(len(labels)) < (n_repeated if change.on_repeated else len(labels)))
    before, after = (
        {
            "model": way,
            "command": WAYS[way].format(base="BASE"),
            "explained": round(results.update.explained, 3),
            **figures_of(records, groups, judged),
        }
        for way, (results, records) in zip((change.before, change.after), audits, strict=True)
    )
    judged_audits = [(results, records.filter(judged)) for results, records in audits]
    differences = {attack: measured(compare_audits(*judged_audits, attack=attack).auc) for attack in OBSERVERS.values()}
    return {"title": change.title, "before": before, "after": after, "auc_difference": differences}


def figures_of(
    records: pa.Table, groups: Int64[np.ndarray, " texts"], judged: np.ndarray[Any, np.dtype[np.bool_]]
) -> dict[str, Any]:
    """Return what an audit says of the texts judged, and how well the model does on texts it never saw."""
    labels, log_likelihood = records["label"].to_numpy(), records["score_loss"].to_numpy()
    used = labels == 1
    found = {}
    for attack in OBSERVERS.values():
        scores = records[f"score_{attack}"].to_numpy()
        # As in the audit: all members are flagged together, also where only some are counted here.
        sides = (groups[used], groups[~used])
        flags = judge_audit(scores[used], scores[~used], attack=attack, fdr=0.05, groups=sides).members.flagged
        shown = used & judged
        measures = measure_attack(
            scores[shown], scores[~used], member_groups=groups[shown], nonmember_groups=groups[~used]
        )
        found[attack] = {
            "auc": measured(measures.auc),
            "tpr_at_1_percent": measured(measures.tpr("0.01")),
            "n_flagged": int(flags[judged[used]].sum()),
        }
    loss = round(float(-np.nanmean(log_likelihood[~used])), 3)
    return {"n_members": int((used & judged).sum()), "held_out_loss": loss, **found}


def measured(measure: Measure) -> list[float | None]:
    """Return value, low, high to three digits."""
    return [None if v is None else round(v, 3) for v in (measure.value, measure.low, measure.high)]


def table_of_changes(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: two rows for each change, one for each observer."""
    heads = ("change", "attacker sees", "AUC before", "AUC after", "difference", "TPR at 1 % FPR", "flagged")
    yield f"| {' | '.join((*heads, 'held-out loss'))} |"
    yield "|---" * (len(heads) + 1) + "|"
    for change in figures.values():
        before, after = change["before"], change["after"]
        title, loss = change["title"], f"{before['held_out_loss']:.3f} to {after['held_out_loss']:.3f}"
        for seen, attack in OBSERVERS.items():
            was, now = before[attack], after[attack]
            cells = [title, seen, written(was["auc"]), written(now["auc"])]
            cells += [written(change["auc_difference"][attack], signed=True)]
            cells += [" to ".join(written(found["tpr_at_1_percent"][:1]) for found in (was, now))]
            cells += [f"{was['n_flagged']} to {now['n_flagged']} of {after['n_members']}", loss]
            yield f"| {' | '.join(cells)} |"
            title = loss = ""


def table_of_models(figures: dict[str, Any], n_members: int) -> Iterator[str]:
    """Yield the lines of a table: a row for each model of which all members are judged."""
    yield "| model | flagged by log-probabilities | flagged by weights | explained | held-out loss |"
    yield "|---|---|---|---|---|"
    models = (change[side] for change in figures.values() for side in ("before", "after"))
    rows = {model["model"]: model for model in models if model["n_members"] == n_members}
    for name, row in rows.items():
        flagged = " | ".join(str(row[attack]["n_flagged"]) for attack in OBSERVERS.values())
        yield f"| {name} | {flagged} | {row['explained']:.3f} | {row['held_out_loss']:.3f} |"


def written(measure: list[float | None], *, signed: bool = False) -> str:
    """Write value, low and high, or a value alone."""
    return figure(Measure(**dict(zip(("value", "low", "high"), measure, strict=False))), signed=signed)


if __name__ == "__main__":
    main()
