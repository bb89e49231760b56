"""Fine-tune a real LM on texts and read its update: python benchmarks/weights.py MODEL CORPUS.jsonl.gz OUT [options].

MODEL is a folder, hub id or .gguf file. Members and non-members are drawn by document (column `source`). Prints AUC and
TPR at 1 % FPR of the weights observer and of the attacks asked for, beside the control that never sees a model.
Fine-tuning and gradients resume.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.roc import auc, tpr_at_fpr
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.in_memory import score_texts
from ltmia.weights.update_attack import WeightsConfig, score_update


def main() -> None:
    """Fine-tune unless OUT/target is there, then read the update."""
    args = _arguments()
    members, nonmembers = _draw(args)
    if not (args.out / "target").is_dir():
        _finetune(args, members)
    pair = load_pair(args.out / "target", args.model, dtype=args.dtype, device="cpu")
    texts = Texts.concatenate([members, nonmembers])
    used = np.arange(len(texts)) < len(members)
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=128, vocab_size=pair.vocab_size)
    started = time.monotonic()
    found = score_update(
        pair,
        encoded,
        args.out / "gradients",
        identity=PairIdentity.of(pair).key,
        config=WeightsConfig(n_coordinates=args.coordinates, n_layers=args.layers, points=args.points),
    )
    print(f"{time.monotonic() - started:.0f} s, layers {found.layers}, {found.n_coordinates} coordinates")
    low, high = found.n_used_interval
    print(f"explained {found.explained:.3f}; used {found.n_used:.0f} [{low:.0f}, {high:.0f}] of {len(texts)}")
    groups = np.unique(texts.groups, return_inverse=True)[1] if texts.groups else None
    scores = {"weights": found.score, "alpha": found.alpha}
    scores["bag_of_words"] = bag_of_words(texts.texts, used.astype(np.int64), groups).scores
    if args.attacks:
        scores |= score_texts(pair, list(texts.texts), attacks=tuple(args.attacks.split(",")))
    for name, score in scores.items():
        ours, theirs = score[used], score[~used]
        print(f"{name:16} AUC {auc(ours, theirs):.3f}  TPR at 1 % FPR {tpr_at_fpr(ours, theirs, 0.01):.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int, default=500)
    parser.add_argument("--nonmembers", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--dtype", default="float32", help="of both models while they are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-column", default="source")
    parser.add_argument("--coordinates", type=int, default=WeightsConfig().n_coordinates)
    parser.add_argument("--layers", type=int, default=WeightsConfig().n_layers)
    parser.add_argument("--points", type=_numbers, help="such as 0,0.5,1")
    parser.add_argument("--attacks", default="", help="attacks on log-probabilities to run beside, such as difference")
    return parser.parse_args()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _draw(args: argparse.Namespace) -> tuple[Texts, Texts]:
    pool = read_texts(args.corpus, group_column=args.group_column)
    drawn = draw_membership(pool, n_members=args.members, n_nonmembers=args.nonmembers, n_validation=0, seed=args.seed)
    return pool.take(drawn.members), pool.take(drawn.nonmembers)


def _finetune(args: argparse.Namespace, members: Texts) -> None:
    options = LoadOptions(dtype="float32", device="cpu")
    config = FinetuneConfig(
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        lora=args.lora,
        seed=args.seed,
    )
    model, _ = load_model(args.model, options)
    outcome = finetune(model, load_tokenizer(args.model, options), members, config, args.out / "target")
    print(f"fine-tuned: loss {outcome.train_loss:.3f}, {outcome.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
