"""Texts that can be drawn out, by epochs and repeats: python benchmarks/extraction.py OUT [options].

Fine-tunes the embedded base on embedded texts, some of which stand in the training file several times, for one or more
numbers of epochs, and audits each model. Prints the share of texts that come out within 1,000 draws, and with
--continuations how near the members with the highest scores come to the truth when they are continued. OUT keeps every
model and audit.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.drawn_out import Nearness
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.report.extraction_words import continued_rows

DRAWS = 1000


def main() -> None:
    """Train, audit, and print a row for each number of epochs."""
    parser = argparse.ArgumentParser(description="Texts that can be drawn out, by epochs and repeats.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=20, help="Texts for each number of repeats.")
    parser.add_argument("--nonmembers", type=int, default=40)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=40, help="Tokens of each text.")
    parser.add_argument("--continuations", type=int, default=0, help="Members whose beginnings are continued.")
    args = parser.parse_args()
    repeats = np.repeat(args.repeats, args.texts)
    members = demo_texts().take(range(len(repeats)))
    nonmembers = demo_texts().take(range(len(repeats), len(repeats) + args.nonmembers))
    print(f"| epochs | {' | '.join(f'{n} x' for n in args.repeats)} | non-members | members, by the base |")
    print("|---" * (len(args.repeats) + 3) + "|")
    near: list[str] = []
    for epochs in args.epochs:
        config = FinetuneConfig(epochs=epochs, learning_rate=args.learning_rate, max_length=args.max_length)
        model = _tuned(list(np.repeat(members.texts, repeats)), config, args.out / f"epochs-{epochs}" / "model")
        options = AuditConfig(attacks="difference", max_length=args.max_length, continuations=args.continuations)
        audited = audit(model, members, nonmembers, args.out / f"epochs-{epochs}" / "audit", config=options)
        records = audited.records
        out, by_base = (_drawn(records, name) for name in ("extractable_within", "extractable_within_by_base"))
        labels = np.array(records["label"].to_pylist())
        shares = [out[labels == 1][repeats == n].mean() for n in args.repeats]
        row = [*shares, out[labels == 0].mean(), by_base[labels == 1].mean()]
        print(f"| {epochs} | {' | '.join(f'{share:.2f}' for share in row)} |", flush=True)
        near += [f"| {epochs} | {name} | {_of(found)} |" for name, found in continued_rows(audited.results)]
    if near:
        print(
            "\n| epochs | texts | tokens in a row: median, most | characters in a row | edit distance: median, least |"
        )
        print("\n".join(["|---" * 5 + "|", *near]))


def _tuned(texts: list[str], config: FinetuneConfig, folder: Path) -> Pair:
    """Fine-tune the embedded base, and return it with its base."""
    base = str(demo_base_path())
    if not folder.is_dir():
        loading = LoadOptions(dtype="float32", device="cpu")
        model, _ = load_model(base, loading)
        finetune(model, load_tokenizer(base, loading), texts, config, folder)
    return load_pair(folder, base, dtype="float32", device="cpu")


def _of(found: Nearness) -> str:
    """Return the cells of a row on continuations."""
    tokens = f"{found.median_run:g}, {found.longest_run}"
    characters = f"{found.median_run_characters:g}, {found.longest_run_characters}"
    return f"{tokens} | {characters} | {found.median_distance:.2f}, {found.smallest_distance:.2f}"


def _drawn(records: pa.Table, column: str) -> np.ndarray:
    """Say which texts come out within so many draws."""
    return np.array([needed is not None and needed <= DRAWS for needed in records[column].to_pylist()])


if __name__ == "__main__":
    main()
