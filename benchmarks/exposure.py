"""Exposure of planted numbers, by repeats: python benchmarks/exposure.py OUT [options].

Writes sentences such as "The code of Anna Bell is 123456." into embedded texts, with one number a text, and fine-tunes
the embedded base on them; some texts stand in the training file several times. Audits the model with the numbers as
secrets, and prints the exposures. OUT keeps the model and the audit.
"""

import argparse
from pathlib import Path

import numpy as np

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.files import read_spans_table
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.records import Texts

FIRST = ("Anna", "Bert", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "James")
LAST = ("Bell", "Cole", "Dean", "Ford", "Gray", "Hill", "King", "Lane", "Moore", "Young", "Wells", "Stone")
RULE = r"code: The code of \w+ \w+ is (\d+)"
WORDS_BEFORE, WORDS_AFTER = 20, 10


def main() -> None:
    """Plant, train, audit, and print a row for each number of repeats."""
    parser = argparse.ArgumentParser(description="Exposure of planted numbers, by repeats.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--values", type=int, default=10, help="Numbers for each number of repeats.")
    parser.add_argument("--nonmembers", type=int, default=40)
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--digits", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--alternatives", type=int, default=2000)
    args = parser.parse_args()
    repeats = np.repeat(args.repeats, args.values)
    texts = planted(len(repeats) + args.nonmembers, args.digits)
    members, nonmembers = texts.take(range(len(repeats))), texts.take(range(len(repeats), len(texts)))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rules.txt").write_text(f"{RULE}\n", "utf-8")
    base, loading = str(demo_base_path()), LoadOptions(dtype="float32", device="cpu")
    if not (args.out / "model").is_dir():
        config = FinetuneConfig(epochs=args.epochs, learning_rate=args.learning_rate)
        model, _ = load_model(base, loading)
        rows = list(np.repeat(members.texts, repeats))
        finetune(model, load_tokenizer(base, loading), rows, config, args.out / "model")
    audit(
        load_pair(args.out / "model", base, dtype="float32", device="cpu"),
        members,
        nonmembers,
        args.out / "audit",
        config=AuditConfig(
            attacks="difference",
            spans=str(args.out / "rules.txt"),
            alternatives=args.alternatives,
            most_values=len(texts),
        ),
    )
    print_table(args.out / "audit", repeats)


def planted(n: int, digits: int) -> Texts:
    """Return embedded texts, each with a sentence that gives a number to a name."""
    rng = np.random.default_rng(0)
    names = [f"{first} {last}" for last in LAST for first in FIRST]
    rows = []
    for i, text in enumerate(demo_texts().texts[:n]):
        words = text.split()
        number = "".join(map(str, rng.integers(10, size=digits)))
        sentence = f"The code of {names[i % len(names)]} is {number}."
        rows.append(" ".join([*words[:WORDS_BEFORE], sentence, *words[WORDS_BEFORE:][:WORDS_AFTER]]))
    return Texts(texts=tuple(rows), ids=tuple(map(str, range(n))))


def print_table(folder: Path, repeats: np.ndarray) -> None:
    """Print mean and smallest exposure under target and base: by number of repeats, then of the non-members."""
    table = read_spans_table(folder)
    assert table is not None  # the audit was given spans
    rows = table.to_pylist()
    sides = {
        f"{n} x": [row for row, times in zip(rows, repeats, strict=False) if times == n] for n in np.unique(repeats)
    }
    sides["non-members"] = rows[len(repeats) :]
    print("| repeats | mean exposure | smallest | largest | mean, by the base |")
    print("|---|---|---|---|---|")
    for name, side in sides.items():
        bits, by_base = ([row[column] for row in side] for column in ("exposure", "exposure_by_base"))
        print(f"| {name} | {np.mean(bits):.1f} | {min(bits)} | {max(bits)} | {np.mean(by_base):.1f} |")


if __name__ == "__main__":
    main()
