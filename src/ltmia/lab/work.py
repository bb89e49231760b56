"""The work of each step: train a tokenizer, pretrain a base, fine-tune it, extract a labelled store."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.pretraining import pretrain
from ltmia.finetuning.tiny import build_base, train_tokenizer
from ltmia.folders import write_folder
from ltmia.lab.state import LabFolder
from ltmia.lab.steps import CombinationWork, ExtractWork, PretrainWork, Step, TokenizerWork
from ltmia.lab.stores import extract_store
from ltmia.lab.texts import (
    POOL_BUCKETS,
    PRETRAINING_BUCKETS,
    corpus_texts,
    draw_texts,
    mixed_texts,
    pool_buckets,
)
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.ownership import Marker

TOKENIZER_TEXTS = 12_000
"""Number of texts to train a tokenizer on; more hardly change its merges."""
HELD_OUT_TEXTS = 200
"""Number of texts to measure a base's held-out loss on."""


Result = Mapping[str, Any]


def perform(step: Step, folder: Path) -> Result:
    """Do one step of the lab in a folder; its product is written when it is complete."""
    torch.set_num_threads(1)
    with LabFolder(folder).step_lock(step):
        _sweep(step.product)
        match step.work:
            case TokenizerWork():
                return _tokenizer(step.work, step.product)
            case PretrainWork():
                return _pretrain(step.work, step.product)
            case CombinationWork():
                return _finetune(step.work)
            case ExtractWork():
                return extract_store(step.work, step)


def _sweep(product: Path) -> None:
    """Delete temporary files of a killed process; its checkpoints stay."""
    beside = product.parent.glob(f".{product.name}.partial-*")
    for path in [*beside, *product.glob(".*.partial-*")]:
        shutil.rmtree(path)


def _tokenizer(work: TokenizerWork, product: Path) -> Result:
    texts = mixed_texts(work.corpora, PRETRAINING_BUCKETS, seed=0)
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], work.vocab_size)

    def save(folder: Path) -> None:
        tokenizer.save_pretrained(folder)

    write_folder(product, save, Marker(kind="a tokenizer", settings={"vocab_size": work.vocab_size}))
    return {"vocab_size": len(tokenizer)}


def _pretrain(work: PretrainWork, product: Path) -> Result:
    tokenizer = load_tokenizer(str(work.tokenizer), LoadOptions(device="cpu"))
    base = work.base
    texts = mixed_texts(work.corpora, PRETRAINING_BUCKETS, base.seed)[: base.max_texts]
    held_out = mixed_texts(work.corpora, POOL_BUCKETS, seed=0)[:HELD_OUT_TEXTS]
    model = build_base(base.shape(len(tokenizer)), seed=base.seed)
    record = pretrain(model, tokenizer, texts, base.pretraining(), out=product, held_out=held_out)
    return {
        "n_parameters": record.n_parameters,
        "tokens_seen": record.tokens_seen,
        "held_out_loss": record.held_out_loss,
        "last_loss": record.loss_curve[-1][1],
        "seconds": record.seconds,
    }


def _finetune(work: CombinationWork) -> Result:
    pool = corpus_texts(work.corpus, pool_buckets(work.corpus))
    drawn = draw_texts(work, pool)
    options = LoadOptions(dtype="float32", device=work.device)
    model, _ = load_model(work.base.path, options)
    outcome = finetune(
        model,
        load_tokenizer(work.base.path, options),
        pool.take(drawn.members),
        work.regime.finetuning(work.draw_seed),
        work.target,
        pool.take(drawn.validation),
    )
    return {
        "train_loss": outcome.train_loss,
        "validation_loss": outcome.validation_loss,
        "tokens_seen": outcome.tokens_seen,
        "n_left_out": outcome.n_left_out,
        "seconds": outcome.seconds,
        **({} if outcome.privacy is None else {"privacy": asdict(outcome.privacy)}),
    }
