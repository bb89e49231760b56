"""Find the few texts of a large pool that a model was trained on: python benchmarks/search.py OUT CORPUS.jsonl.gz ...

Passages of all corpora are cut into pieces. A model is fine-tuned on pieces that are drawn by document (column
`source`), and `ltmia score` searches for them in a folder of Parquet files. Unused pieces that repeat a used one are
left out. Prints time and memory of the search, AUC and TPR at 1 % and 0.1 % FPR with 95 % intervals by document, and
the pieces flagged. Run again, it resumes.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltmia.data.duplicates import OVERLAP_SHARE, ngram_overlap
from ltmia.data.embedded import demo_base_path
from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.files import read_records
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.wording import figure
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.records import Texts

SHARDS = 10
"""Files that the candidates are written to."""


def main() -> None:
    """Fine-tune and write the pool unless OUT holds them, search, and print what was found."""
    args = _arguments()
    pool = Texts.concatenate([in_pieces(read_texts(path, group_column="source"), args) for path in args.corpora])
    n_others = args.candidates - args.members + args.nonmembers
    drawn = draw_membership(pool, n_members=args.members, n_nonmembers=n_others, n_validation=0, seed=args.seed)
    members, others = pool.take(drawn.members), pool.take(drawn.nonmembers)
    shared = ngram_overlap(others.texts, members.texts).shares > OVERLAP_SHARE
    print(f"{shared.sum()} unused pieces repeat a used one and are left out", flush=True)
    others = others.take(np.flatnonzero(~shared))
    mixed = np.random.default_rng(args.seed).permutation(len(others))
    candidates = Texts.concatenate([members, others.take(np.sort(mixed[args.nonmembers :]))])
    if not (args.out / "target").is_dir():
        prepare(args, members, candidates, others.take(np.sort(mixed[: args.nonmembers])))
    started = time.monotonic()
    search(args)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{time.monotonic() - started:.0f} s, at most {peak / 2**30:.2f} GiB", flush=True)
    show(args.out / "search", members, dict(zip(candidates.ids, candidates.groups or candidates.ids, strict=True)))


def in_pieces(texts: Texts, args: argparse.Namespace) -> Texts:
    """Cut the beginning of each passage into pieces."""
    ids, groups, pieces = [], [], []
    for name, group, text in zip(texts.ids, texts.groups or texts.ids, texts.texts, strict=True):
        for piece in range(args.pieces):
            ids.append(f"{name}#{piece}")
            groups.append(group)
            pieces.append(text[piece * args.characters : (piece + 1) * args.characters])
    return Texts(texts=tuple(pieces), ids=tuple(ids), groups=tuple(groups))


def prepare(args: argparse.Namespace, members: Texts, candidates: Texts, nonmembers: Texts) -> None:
    """Write the candidates in random order, write the non-members, and fine-tune on the members."""
    (args.out / "candidates").mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(args.seed).permutation(len(candidates))
    for shard, rows in enumerate(np.array_split(order, SHARDS)):
        write(candidates.take(rows), args.out / "candidates" / f"{shard:02}.parquet")
    write(nonmembers, args.out / "nonmembers.parquet")
    options = LoadOptions(dtype="float32", device="cpu")
    config = FinetuneConfig(epochs=1, learning_rate=args.learning_rate, max_length=args.max_length, seed=args.seed)
    tokenizer = load_tokenizer(args.model, options)
    outcome = finetune(load_model(args.model, options)[0], tokenizer, members, config, args.out / "target")
    print(f"fine-tuned: loss {outcome.train_loss:.3f}, {outcome.seconds:.0f} s", flush=True)


def write(texts: Texts, path: Path) -> None:
    """Write texts as Parquet."""
    columns = {"id": texts.ids, "text": texts.texts, "source": texts.groups}
    pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), path)


def search(args: argparse.Namespace) -> None:
    """Run `ltmia score`."""
    command = [sys.executable, "-m", "ltmia", "score", args.out / "target", "--base", args.model]
    command += ["--candidates", args.out / "candidates", "--nonmembers", args.out / "nonmembers.parquet"]
    command += ["--max-length", args.max_length, "--batch-size", args.batch_size, "-o", args.out / "search"]
    subprocess.run([str(word) for word in command], check=True)


def show(folder: Path, members: Texts, group_of: dict[str, str]) -> None:
    """Print how well the members stand out among the candidates, and what is flagged."""
    records = read_records(folder)
    ids, trained = records["id"].to_pylist(), set(members.ids)
    judged = np.array([name in group_of for name in ids])
    used = np.array([name in trained for name in ids])
    groups = np.array([group_of.get(name, "") for name in ids])
    for column in (name for name in records.column_names if name.startswith("score_")):
        score = records[column].to_numpy()
        sides = [judged & used & np.isfinite(score), judged & ~used & np.isfinite(score)]
        scores, documents = [score[side] for side in sides], [groups[side] for side in sides]
        found = measure_attack(*scores, member_groups=documents[0], nonmember_groups=documents[1])
        at = ", ".join(f"TPR at {name} FPR {figure(found.tpr_at_fpr[name])}" for name in ("0.01", "0.001"))
        print(f"{column.removeprefix('score_')}: AUC {figure(found.auc)}, {at}")
    flagged = np.array([bool(flag) for flag in records["flagged"].to_pylist()])
    print(f"flagged {flagged.sum()}, of them used {(flagged & used).sum()}; used in all {used.sum()}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--model", default=str(demo_base_path()), help="base; default: the embedded one")
    parser.add_argument("--members", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=100_000, help="members among them")
    parser.add_argument("--nonmembers", type=int, default=10_000, help="texts that are known to be unused")
    parser.add_argument("--pieces", type=int, default=2, help="cut from each passage")
    parser.add_argument("--characters", type=int, default=160, help="of a piece")
    parser.add_argument("--max-length", type=int, default=32, help="tokens read of each piece")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
