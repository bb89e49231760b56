"""Settings and checkpoints that pretraining and fine-tuning share; checkpoints survive a kill.

This module uses `transformers.Trainer`, and does not depend on an architecture or on texts.
"""

import errno
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
from transformers.utils.logging import disable_progress_bar

from ltmia.errors import ModelError
from ltmia.folders import named_errors

COMPLETE = "complete"
"""Marker inside a checkpoint, written after everything else: the size of each file, as JSON."""

IGNORED_LABEL = -100
LINE_SECONDS = 10.0
"""Seconds between two lines of progress if there is no terminal."""

log = logging.getLogger(__name__)

Row = dict[str, torch.Tensor]


def ignore_first(labels: torch.Tensor) -> None:
    """Remove the label of the first position of each row, in place, because nothing predicts it.

    For some architectures (GPT-2 among them) `Trainer` divides the loss by the labels it counts before they are
    shifted; a first label there would make every loss too low by 1 / length.
    """
    labels[..., 0] = IGNORED_LABEL


def training_arguments(folder: Path, device: torch.device, **settings: object) -> TrainingArguments:
    """Return Trainer settings without reports to trackers, and with a progress bar only on a terminal."""
    if not sys.stderr.isatty():
        disable_progress_bar()
    quiet: dict[str, Any] = {
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "save_strategy": "no",
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type == "cuda",
        "prediction_loss_only": True,
        "use_cpu": device.type == "cpu",
    }
    return TrainingArguments(output_dir=str(folder), **(quiet | settings))


Logs = dict[str, float] | None


class StepBar(ProgressCallback):
    """A progress bar on a terminal that also shows the loss, instead of a line for every step."""

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs = None, **_more: object) -> None:
        """Show the last step's loss."""
        del args, control
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class StepLines(TrainerCallback):
    """Logs progress every `LINE_SECONDS` seconds, for output that is not a terminal."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs = None, **_more: object) -> None:
        """Log the step and its loss when the time has come."""
        del args, control
        if logs and "loss" in logs and time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            log.info("training: step %d of %d, loss %.3f", state.global_step, state.max_steps, float(logs["loss"]))


class TimedCheckpoints(TrainerCallback):
    """Requests a checkpoint at a fixed interval, and marks each finished one as complete."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.last = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        """Ask for a checkpoint when the time has come; the end of training needs none."""
        del args
        due = self.minutes is not None and time.monotonic() - self.last >= 60 * self.minutes
        if due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_kwargs: object,
    ) -> None:
        """Mark the checkpoint as complete: `Trainer` calls this after its last file."""
        del control
        self.last = time.monotonic()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            (folder / COMPLETE).write_text(json.dumps(_file_sizes(folder)), encoding="utf-8")


def make_trainer(
    model: torch.nn.Module,
    arguments: TrainingArguments,
    *,
    train: Dataset[Row],
    validation: Dataset[Row] | None,
    collate: Callable[[list[Row]], Row],
    checkpoint_minutes: float | None,
    build: Callable[..., Trainer] = Trainer,
) -> Trainer:
    """Build a Trainer that shows a progress bar on a terminal, and logs progress elsewhere."""
    trainer = build(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        callbacks=[TimedCheckpoints(checkpoint_minutes)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(StepLines() if arguments.disable_tqdm else StepBar())
    return trainer


def train_or_resume(trainer: Trainer) -> None:
    """Train from the newest complete checkpoint of the Trainer's folder, or from the start.

    Ends with the weights of the best checkpoint if the Trainer keeps the best one.

    Raises:
        StoreError: If a checkpoint cannot be written.
    """
    checkpoint = newest_checkpoint(Path(str(trainer.args.output_dir)))
    if checkpoint is not None:
        _load_weights(trainer.model, checkpoint)
    with _named_checkpoints(Path(str(trainer.args.output_dir))):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best is not None:
        _load_weights(trainer.model, Path(best))


@contextmanager
def _named_checkpoints(folder: Path) -> Iterator[None]:
    """Turn torch's error for a checkpoint that cannot be written, which has no path, into one that names the folder."""
    with named_errors(folder):
        try:
            yield
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _load_weights(model: torch.nn.Module | None, checkpoint: Path) -> None:
    """Load a checkpoint's weights by `from_pretrained`.

    `Trainer` silently skips weights whose names it does not find: GPT-NeoX's head, which is renamed on saving, would
    keep its old values. A PEFT adapter is loaded by PEFT and needs no care.
    """
    if isinstance(model, PreTrainedModel):
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, local_files_only=True)
        model.load_state_dict(saved.state_dict())


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove those that were half-written or truncated since."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if _is_complete(path):
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        noted = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(noted == _file_sizes(checkpoint))


def _file_sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in sorted(files)}


WORSE_THAN_CHANCE = 5.0
"""A training loss above this many times that of a uniform guess has diverged."""


def check_learned(model: PreTrainedModel | PeftModel, loss: float, learning_rate: float) -> None:
    """Refuse a model that the training broke.

    Raises:
        ModelError: If its weights or loss are no numbers, or it is far worse than a uniform guess.
    """
    rows = int(model.config.get_text_config().vocab_size)
    finite = all(bool(p.isfinite().all()) for p in model.parameters() if p.is_floating_point())
    if not finite or not loss < WORSE_THAN_CHANCE * math.log(max(rows, 3)):
        raise ModelError(f"the fine-tuning diverged (loss {loss:.4g}) at learning_rate = {learning_rate:g}: lower it")


def save_model(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder, or a PEFT adapter's: safetensors, config, tokenizer."""
    if isinstance(model, PeftModel):
        # Given explicitly, because PEFT would otherwise look for the base to see whether its vocabulary has grown.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        forget_gguf(model)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forget_gguf(model: PreTrainedModel) -> None:
    """Drop the quantisation settings of a model read from a GGUF file.

    Its weights were dequantised on loading, yet with the settings transformers would neither train nor save it.

    Raises:
        ModelError: The weights are still the file's blocks.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if not isinstance(quantizer, GgufHfQuantizer):
        return
    if any(weight.dtype == torch.uint8 for weight in model.state_dict().values()):
        raise ModelError(
            f"{model.name_or_path}: the weights are still quantised blocks, which cannot be "
            "trained or saved: load it with quantization_config=GgufConfig(dequantize=True)"
        )
    quantizer.remove_quantization_config(model)


Loss = Literal["loss", "eval_loss"]


def loss_history(trainer: Trainer, key: Loss) -> list[tuple[int, float]]:
    """Return (step, loss) pairs that the Trainer logged, in nats per token."""
    return [(int(row["step"]), float(row[key])) for row in trainer.state.log_history if key in row]
