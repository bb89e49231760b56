"""Fine-tunes a causal LM on texts, in full or with LoRA. The caller chooses the texts, which become its members."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ltmia.errors import ConfigError, DataError
from ltmia.finetuning.card import write_card
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.privacy import PRIVACY_FILE, PrivacySpent
from ltmia.finetuning.training import (
    Row,
    check_learned,
    forget_gguf,
    make_trainer,
    save_model,
    train_or_resume,
    training_arguments,
)
from ltmia.finetuning.training_rows import RightPadding, TextRow, TokenRows, training_rows
from ltmia.folders import remove_work_folder, work_folder, write_folder
from ltmia.models.identity import ModelIdentity, tokenizer_sha256
from ltmia.ownership import Marker, check_folder, read_marker, refuse_changed, refuse_inputs
from ltmia.records import Texts
from ltmia.runtime import computes_bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOutcome:
    """A fine-tuned model and figures of its training."""

    model: PreTrainedModel | PeftModel
    """The given model, changed in place; with LoRA, wrapped in its adapter."""
    train_loss: float
    """Mean training loss over the last epoch's steps, nats per token."""
    validation_loss: float | None
    """Mean loss over the batches of validation texts under the model that is kept, nats per token; None without
    validation texts."""
    seconds: float
    """Seconds in this process; time before a resumption is not included."""
    tokens_seen: int
    """Number of tokens over all epochs, without padding."""
    n_left_out: int
    """Number of training texts without a token, which were left out."""
    path: Path | None
    """The folder written, if one was asked for."""
    privacy: PrivacySpent | None = None
    """Budget spent under differential privacy; None without it."""


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts | Sequence[str],
    config: FinetuneConfig,
    out: Path | None = None,
    validation: Texts | Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> FinetuneOutcome:
    """Fine-tune `model` in place on one text per row.

    With `out`, the complete model is written there as a Hugging Face folder (with LoRA, a PEFT adapter) that names its
    base. The same call after a kill resumes from the last checkpoint. In a folder from an earlier call, our files are
    replaced and all others stay.

    Args:
        model: Causal LM in float32 (otherwise it is trained in its own dtype); load a copy to keep the original.
        tokenizer: Tokenizer of the model.
        texts: The members. Texts without a token are left out and counted; prompts are read but not learned.
        config: Settings of the fine-tuning.
        out: Folder to write.
        validation: Texts to measure after training, or after each epoch if the best one is kept.
        overwrite: Replace a fine-tuned model in `out` that was made with other settings.

    Raises:
        ConfigError: If the best epoch is wanted without validation texts, if an adapter would have to name a base that
            was built in memory, or if `out` is refused (`ownership.check_folder`).
        DataError: If no training text, or no validation text, has a token.
        ModelError: If the training diverged; nothing is written.
    """
    rows = _rows(tokenizer, texts, "training", config.max_length)
    measured = _rows(tokenizer, validation, "validation", config.max_length) if len(validation) else []
    _check(model, config, out, bool(measured))
    marker = _marker((model, tokenizer), config, (rows, measured))
    if out is not None:
        refuse_inputs(out, [model.name_or_path or ""])
        check_folder(out, marker, overwrite=overwrite)
    started = time.monotonic()
    forget_gguf(model)
    with _work(out, marker) as work:
        trained = _train(model, tokenizer, (rows, measured), config, work, resumable=out is not None)
        if out is not None:
            write_folder(out, lambda folder: _save(trained, tokenizer, folder), marker, overwrite=overwrite, work=work)
            remove_work_folder(out)
    return FinetuneOutcome(
        model=trained.model,
        train_loss=trained.train_loss,
        validation_loss=trained.validation_loss,
        seconds=round(time.monotonic() - started, 3),
        tokens_seen=config.epochs * sum(map(len, rows)),
        n_left_out=len(texts) - len(rows),
        path=out,
        privacy=trained.privacy,
    )


def is_finetuned(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts | Sequence[str],
    config: FinetuneConfig,
) -> bool:
    """Say whether `finetune` with the same arguments and no validation texts has finished in a folder.

    Raises:
        ConfigError: If it has, and a file was changed since.
    """
    found = read_marker(out)
    marker = _marker((model, tokenizer), config, (_rows(tokenizer, texts, "training", config.max_length), []))
    if found is None or not found.files or (found.kind, found.settings) != (marker.kind, marker.settings):
        return False
    refuse_changed(out, found)
    return all((out / name).is_file() for name in found.files)


def _rows(
    tokenizer: PreTrainedTokenizerBase, texts: Texts | Sequence[str], kind: str, max_length: int
) -> list[TextRow]:
    if isinstance(texts, Texts):
        if texts.rejected is not None:
            raise DataError(
                f"{texts.source}: holds preference pairs, on which this does not train. Rename `chosen` to "
                "`completion` to train on the chosen ones, or use TRL's DPOTrainer."
            )
        rows = training_rows(tokenizer, texts.texts, max_length, texts.starts)
    else:
        rows = training_rows(tokenizer, texts, max_length)
    if not rows:
        raise DataError(f"none of {len(texts)} {kind} texts has a token to predict")
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How to train: as usual, or with differential privacy."""

    train: Dataset[Any]
    collate: Callable[[list[Row]], Row]
    build: Callable[..., Trainer] = Trainer
    around: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Entered while training."""
    privacy: PrivacySpent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A model after training, not yet saved."""

    model: PreTrainedModel | PeftModel
    train_loss: float
    validation_loss: float | None
    privacy: PrivacySpent | None


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[list[TextRow], list[TextRow]],
    config: FinetuneConfig,
    work: Path,
    *,
    resumable: bool,
) -> _Trained:
    """Train on some rows, measure the loss on others, and write checkpoints into `work`."""
    training, validation = rows
    tuned: PreTrainedModel | PeftModel = model
    if config.lora:
        tuned = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    way = _way(tuned, training, config, RightPadding(tokenizer.pad_token_id or 0))
    trainer = make_trainer(
        tuned,
        _arguments(work, model.device, config, len(training)),
        train=way.train,
        validation=TokenRows(validation) if validation else None,
        collate=way.collate,
        checkpoint_minutes=config.checkpoint_minutes if resumable else None,
        build=way.build,
    )
    with way.around:
        train_or_resume(trainer)
    validation_loss = trainer.evaluate()["eval_loss"] if validation else None
    tuned.eval()
    train_loss = _last_epoch_loss(trainer, config.epochs)
    check_learned(tuned, train_loss, config.learning_rate)
    return _Trained(model=tuned, train_loss=train_loss, validation_loss=validation_loss, privacy=way.privacy)


def _way(model: PreTrainedModel | PeftModel, rows: list[TextRow], config: FinetuneConfig, pad: RightPadding) -> _Way:
    if config.dp is None:
        return _Way(train=TokenRows(rows), collate=pad)
    try:
        from ltmia.finetuning import dp_sgd as private
    except ModuleNotFoundError as error:
        raise ConfigError('dp needs Opacus: pip install "ltmia[dp]"') from error
    privacy = private.plan_privacy(config.dp, len(rows), config.batch_size, config.epochs)
    collate = private.private_collate(model, pad)
    return _Way(
        train=private.draw_batches(rows, privacy, config.seed),
        collate=collate,
        build=partial(private.PrivateTrainer, privacy=privacy, batch_size=config.batch_size),
        around=private.per_text_gradients(model, collate, rows),
        privacy=privacy,
    )


def _save(trained: _Trained, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    save_model(trained.model, tokenizer, folder)
    # An adapter's config names its base.
    if isinstance(trained.model, PreTrainedModel):
        write_card(trained.model, folder)
    if trained.privacy is not None:
        (folder / PRIVACY_FILE).write_text(json.dumps(asdict(trained.privacy), indent=1), encoding="utf-8")


def _check(model: PreTrainedModel, config: FinetuneConfig, out: Path | None, measured: bool) -> None:
    if config.keep == "best" and not measured:
        raise ConfigError('keep = "best" needs validation texts to choose by: give some, or "last"')
    if config.lora and out is not None and not model.name_or_path:
        raise ConfigError(
            f"{out}: an adapter must name its base, and this model was built in memory: "
            "save the base and load it from its folder"
        )


def _arguments(work: Path, device: torch.device, config: FinetuneConfig, n_rows: int) -> TrainingArguments:
    n_steps = config.epochs * math.ceil(n_rows / config.batch_size)
    best = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    settings: dict[str, Any] = {
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "bf16": config.autocast and computes_bfloat16(device),
    }
    if config.dp is not None:  # batches are drawn beforehand for all epochs, and gradients are clipped one by one
        private: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
        settings = {"num_train_epochs": 1, "per_device_train_batch_size": 1, **private}
    return training_arguments(
        work,
        device,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear" if config.schedule == "linear" else "constant_with_warmup",
        warmup_steps=math.ceil(config.warmup * n_steps),
        weight_decay=config.weight_decay,
        seed=config.seed,
        logging_steps=1,
        **(settings | (best if config.keep == "best" else {})),
    )


def _marker(
    base: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    config: FinetuneConfig,
    rows: tuple[list[TextRow], list[TextRow]],
) -> Marker:
    """Return a marker with everything that the fine-tuned model depends on."""
    made_of = {
        "texts": sha256(repr(rows).encode()).hexdigest(),
        "base": ModelIdentity.of(base[0]).key,
        "tokenizer": tokenizer_sha256(base[1]),
    }
    return Marker(kind="a fine-tuned model", settings=asdict(config) | made_of)


@contextmanager
def _work(out: Path | None, marker: Marker) -> Iterator[Path]:
    """Provide the folder for checkpoints: next to `out`, to resume from, or a temporary one."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        with work_folder(out, marker.settings) as folder:
            yield folder


def _last_epoch_loss(trainer: Trainer, epochs: int) -> float:
    before = trainer.state.max_steps * (epochs - 1) // epochs
    return fmean(row["loss"] for row in trainer.state.log_history if "loss" in row and row["step"] > before)
