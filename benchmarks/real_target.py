"""A real LM, fine-tuned on half of a corpus: what the benchmarks on real LMs share. No script of its own."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltmia.data.duplicates import exact_duplicates
from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.training import make_trainer, save_model, training_arguments
from ltmia.finetuning.training_rows import RightPadding, TokenRows, training_rows
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.training_run import load_training_run
from ltmia.records import Texts


@dataclass(frozen=True, kw_only=True)
class RealTarget:
    """A fine-tuned LM beside its base, with the texts it was fine-tuned on and others of their kind."""

    pair: Pair
    members: Texts
    nonmembers: Texts
    """Of other documents than the members."""
    siblings: Texts
    """Texts of the members' documents that were not trained on."""


def arguments(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Return a parser of what says which LM is fine-tuned on what, and how.

    Args:
        description: Of the benchmark.
        defaults: Those that are the benchmark's own, such as members, nonmembers, learning_rate, dtype.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="folder, hub id or .gguf file")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int)
    parser.add_argument("--nonmembers", type=int)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128, help="tokens read of each text")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--checkpoints", type=int, default=0, help="states kept in OUT/run from within the training")
    parser.add_argument("--dtype", help="of both models after training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group-column", default="source")
    parser.set_defaults(**defaults)
    return parser


def fine_tuned(args: argparse.Namespace) -> RealTarget:
    """Draw members and non-members by document, fine-tune unless OUT/target is there, and load the pair."""
    pool = read_texts(args.corpus, group_column=args.group_column)
    drawn = draw_membership(pool, n_members=args.members, n_nonmembers=args.nonmembers, n_validation=0, seed=args.seed)
    members, target = pool.take(drawn.members), args.out / "target"
    if not target.is_dir():
        options = LoadOptions(dtype="float32", device="cpu")
        config = FinetuneConfig(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            max_length=args.max_length,
            lora=args.lora,
            seed=args.seed,
        )
        model, _ = load_model(args.model, options)
        tokenizer = load_tokenizer(args.model, options)
        if args.checkpoints:
            train_with_checkpoints(model, tokenizer, members, config, args.checkpoints, args.out)
        else:
            outcome = finetune(model, tokenizer, members, config, target)
            print(f"fine-tuned: loss {outcome.train_loss:.3f}, {outcome.seconds:.0f} s", flush=True)
    kept = [args.out / "run"] if args.checkpoints else []
    pair = load_training_run(target, args.model, kept, dtype=args.dtype, device="cpu")
    siblings = sibling_rows(pool, drawn.members)
    return RealTarget(pair=pair, members=members, nonmembers=pool.take(drawn.nonmembers), siblings=pool.take(siblings))


def train_with_checkpoints(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    members: Texts,
    config: FinetuneConfig,
    n_checkpoints: int,
    out: Path,
) -> None:
    """Fine-tune at a falling rate; write the model into OUT/target, and evenly spaced states into OUT/run."""
    tuned = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed) if config.lora else model
    rows = training_rows(tokenizer, members.texts, config.max_length)
    n_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    arguments = training_arguments(
        out / "run",
        model.device,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=math.ceil(n_steps / (n_checkpoints + 1)),
        save_total_limit=None,
        save_only_model=True,
        seed=config.seed,
    )
    collate = RightPadding(tokenizer.pad_token_id or 0)
    trainer = make_trainer(
        tuned, arguments, train=TokenRows(rows), validation=None, collate=collate, checkpoint_minutes=None
    )
    trainer.train()
    save_model(tuned, tokenizer, out / "target")


def sibling_rows(pool: Texts, members: Int64[np.ndarray, " members"]) -> list[int]:
    """Return the rows of the members' documents that are neither members nor repeats of another text."""
    if pool.groups is None:
        return []
    documents, trained, repeats = {pool.groups[row] for row in members}, set(members), exact_duplicates(pool.texts)
    rows = (row for row, group in enumerate(pool.groups) if group in documents and pool.texts[row].strip())
    return [row for row in rows if row not in trained and row not in repeats]
