"""Fine-tune a real LM on one corpus and audit it: python benchmarks/real_lm.py MODEL CORPUS.jsonl.gz OUT [options].

MODEL is a folder, hub id or .gguf file. Members and non-members are drawn by document (column `source`). Training is
bfloat16 autocast where the CPU has it. Prints the table of attacks; results.json in OUT holds every figure.
"""

import argparse
from pathlib import Path

from rich.console import Console

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.report.terminal import print_results


def main() -> None:
    """Fine-tune unless OUT/target is there, then audit (both resume)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--nonmembers", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", help="of scoring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-column", default="source")
    args = parser.parse_args()

    pool = read_texts(args.corpus, group_column=args.group_column)
    drawn = draw_membership(pool, n_members=args.members, n_nonmembers=args.nonmembers, n_validation=0, seed=args.seed)
    members, nonmembers = pool.take(drawn.members), pool.take(drawn.nonmembers)
    target = args.out / "target"
    if not target.is_dir():
        options = LoadOptions(dtype="float32", device="cpu")
        config = FinetuneConfig(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            lora=args.lora,
            seed=args.seed,
        )
        model, _ = load_model(args.model, options)
        outcome = finetune(model, load_tokenizer(args.model, options), members.texts, config, target)
        print(f"fine-tuned: loss {outcome.train_loss:.3f}, {outcome.seconds:.0f} s", flush=True)
    pair = load_pair(target, args.model, dtype=args.dtype, device="cpu")
    result = audit(pair, members, nonmembers, args.out, config=AuditConfig(seed=args.seed))
    print_results(result.results, result.folder, Console())


if __name__ == "__main__":
    main()
