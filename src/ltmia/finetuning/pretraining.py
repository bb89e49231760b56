"""Pretraining of a tiny base from scratch: packed blocks, a cosine schedule, resumed after a kill.

This module uses `transformers.Trainer` through `training`, and does not depend on an architecture or a corpus.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltmia.errors import ConfigError, DataError
from ltmia.finetuning.training import (
    Row,
    ignore_first,
    loss_history,
    make_trainer,
    save_model,
    train_or_resume,
    training_arguments,
)
from ltmia.folders import remove_work_folder, work_folder, write_folder
from ltmia.models.identity import ModelIdentity, tokenizer_sha256
from ltmia.models.tokens import tokenised_at_once
from ltmia.ownership import Marker
from ltmia.records import without_surrogates
from ltmia.runtime import computes_bfloat16

RECORD_FILE = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Settings of pretraining a base."""

    n_tokens: int
    """Number of training tokens, rounded up to whole batches. The texts are repeated if they have fewer."""
    learning_rate: float = 2e-3
    """Highest learning rate: reached after the warm-up, then falling to zero along a cosine."""
    batch_size: int = 32
    """Blocks per step."""
    seq_len: int = 128
    """Tokens per block."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    seed: int = 0
    """Seed of the order of blocks and of dropout."""
    autocast: bool = True
    """Use bfloat16 autocast if the hardware supports it."""
    checkpoint_minutes: float = 3.0
    """Time between checkpoints; a kill costs at most this."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        for name in ("n_tokens", "batch_size", "learning_rate", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")
        if self.seq_len < 2:
            raise ConfigError(f"seq_len = {self.seq_len}: expected at least 2")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup = {self.warmup}: expected a share, 0 to under 1")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay = {self.weight_decay}: expected 0 or more")

    @property
    def n_steps(self) -> int:
        """Optimiser steps."""
        return math.ceil(self.n_tokens / (self.batch_size * self.seq_len))


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecord:
    """Figures of a pretraining, as written to `training.json`."""

    n_parameters: int
    """Number of weights; tied ones count once."""
    tokens_seen: int
    """Number of training tokens, with repetitions."""
    tokens_available: int
    """Number of distinct training tokens."""
    loss_curve: list[tuple[int, float]]
    """Step and mean training loss since the step before, nats per token."""
    held_out_loss: float | None
    """Mean loss of the held-out texts, packed in the same way, in nats per token; None without such texts."""
    seconds: float
    """Seconds in this process; time before a resumption is not included."""
    settings: dict[str, int | float | bool | str]
    """The config, and hashes of the training tokens, the untrained model and the tokenizer."""


class Blocks(Dataset[Row]):
    """Blocks of tokens in a fixed order: a new permutation for each pass."""

    def __init__(self, blocks: Int32[np.ndarray, "n seq"], n_rows: int, seed: int | None) -> None:
        self.blocks = blocks
        self.order = _rounds(len(blocks), n_rows, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Row:
        ids = torch.from_numpy(self.blocks[self.order[index]].astype(np.int64))
        labels = ids.clone()
        ignore_first(labels)
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def _rounds(n: int, n_rows: int, seed: int | None) -> Int64[np.ndarray, " rows"]:
    if seed is None:
        return np.arange(n_rows) % n
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(n) for _ in range(math.ceil(n_rows / n))]
    return np.concatenate(rounds)[:n_rows]


def pack_blocks(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], seq_len: int) -> Int32[np.ndarray, "n seq"]:
    """Concatenate texts, with EOS after each, and cut blocks; a last short block is left out."""
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token: packed texts need one between them")
    clean = [without_surrogates(text) for text in texts]
    ids: list[int] = []
    for part in tokenised_at_once(len(clean)):
        for row in tokenizer(clean[part], add_special_tokens=False, verbose=False)["input_ids"]:
            ids += [*row, tokenizer.eos_token_id]
    n_blocks = len(ids) // seq_len
    return np.array(ids[: n_blocks * seq_len], np.int32).reshape(n_blocks, seq_len)


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: PretrainConfig,
    *,
    out: Path,
    held_out: Sequence[str] = (),
) -> PretrainRecord:
    """Pretrain `model` in place and write it as a plain Hugging Face folder with `training.json`.

    The same call after a kill resumes from the last checkpoint. If `out` already exists, its record is returned and
    nothing is trained; load the model from `out` then.

    Args:
        model: Untrained model from `tiny.build_base`.
        tokenizer: Tokenizer with an EOS token.
        texts: Training texts.
        config: Settings of the pretraining.
        out: Folder to write; until then checkpoints are in a hidden folder next to it.
        held_out: Texts whose loss is measured; they are not trained on.

    Raises:
        ConfigError: If `out` was made with other settings.
        DataError: If the texts do not fill one block.
    """
    blocks = pack_blocks(tokenizer, texts, config.seq_len)
    if len(blocks) == 0:
        raise DataError(f"{len(texts)} texts do not fill one block of {config.seq_len} tokens: give more")
    settings = asdict(config) | {
        "model_type": str(model.config.model_type),
        "tokens_sha256": hashlib.sha256(blocks.tobytes()).hexdigest(),
        "base_sha256": ModelIdentity.of(model).key,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    done = _read_record(out, settings)
    if done is not None:
        return done
    with work_folder(out, settings) as work:
        started = time.monotonic()
        curve, held_out_loss = _train(model, work, config, blocks, pack_blocks(tokenizer, held_out, config.seq_len))
        record = PretrainRecord(
            n_parameters=model.num_parameters(),
            tokens_seen=config.n_steps * config.batch_size * config.seq_len,
            tokens_available=blocks.size,
            loss_curve=curve,
            held_out_loss=held_out_loss,
            seconds=round(time.monotonic() - started, 1),
            settings=settings,
        )

        def write(folder: Path) -> None:
            save_model(model, tokenizer, folder)
            (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")

        write_folder(out, write, Marker(kind="a pretrained model", settings=settings))
        remove_work_folder(out)
    return record


def _train(
    model: PreTrainedModel,
    work: Path,
    config: PretrainConfig,
    blocks: Int32[np.ndarray, "n seq"],
    held_out: Int32[np.ndarray, "m seq"],
) -> tuple[list[tuple[int, float]], float | None]:
    autocast = config.autocast and computes_bfloat16(model.device)
    arguments = training_arguments(
        work,
        model.device,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        max_steps=config.n_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * config.n_steps),
        weight_decay=config.weight_decay,
        adam_beta2=0.95,
        bf16=autocast,
        seed=config.seed,
        train_sampling_strategy="sequential",
        logging_steps=max(1, config.n_steps // 40),
    )
    trainer = make_trainer(
        model,
        arguments,
        train=Blocks(blocks, config.n_steps * config.batch_size, config.seed),
        validation=Blocks(held_out, len(held_out), None) if len(held_out) else None,
        collate=_stack,
        checkpoint_minutes=config.checkpoint_minutes,
    )
    train_or_resume(trainer)
    held_out_loss = trainer.evaluate()["eval_loss"] if len(held_out) else None
    model.eval()
    return loss_history(trainer, "loss"), held_out_loss


def _stack(rows: list[Row]) -> Row:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _read_record(out: Path, settings: dict[str, int | float | bool | str]) -> PretrainRecord | None:
    if not out.exists():
        return None
    file = out / RECORD_FILE
    if file.is_file():
        fields = json.loads(file.read_text(encoding="utf-8"))
        fields["loss_curve"] = [(int(step), float(loss)) for step, loss in fields["loss_curve"]]
        record = PretrainRecord(**fields)
        if record.settings == settings:
            return record
    raise ConfigError(
        f"{out} exists and was not made with these settings and texts: remove it or choose another folder"
    )
