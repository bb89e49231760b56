"""Rough estimates of a plan's time, memory and disk, from figures measured on one CPU core."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ltmia.features.packing import row_width
from ltmia.finetuning.tiny import build_base
from ltmia.lab.recipe import Regime
from ltmia.lab.state import read_json
from ltmia.lab.steps import BaseSource, CombinationWork, ExtractWork, PretrainWork, Step

TRAINING_SPEED = {"mamba": 2.5e9, "rwkv": 3.5e9, "recurrent_gemma": 9e9}
"""Parameters x training tokens per second of the slow kinds, on one core under bfloat16 autocast."""
USUAL_SPEED = 14e9
FORWARD_SHARE = 0.35
"""A forward pass in float32, as a share of a training step under autocast."""
KERNEL_SPEED = 6e7
"""Vocabulary entries per second that the statistics of a position take."""
FIXED_SECONDS = {"tokenizer": 15.0, "pretrain": 30.0, "finetune": 5.0, "extract": 8.0}
"""Reading, tokenising, loading and checks of a step."""
PROCESS_BYTES = 900_000_000
"""A worker with its libraries and a corpus."""
TRAINING_COPIES = 4
"""Weights, gradients and the optimiser's two moments."""
USUAL_VOCABULARY = 50_000
"""Taken for a base whose vocabulary is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Estimated cost of one step."""

    kind: str
    name: str
    done: bool
    """Whether nothing is left to do."""
    seconds: float | None
    """Seconds on one worker; None for a base whose size is unknown before it is downloaded."""
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabForecast:
    """Estimated cost of a lab."""

    steps: tuple[Forecast, ...]
    workers: int

    @property
    def to_do(self) -> tuple[Forecast, ...]:
        """Steps not yet done."""
        return tuple(step for step in self.steps if not step.done)

    @property
    def seconds(self) -> float:
        """Wall-clock time if the work spreads evenly; steps of unknown size are left out."""
        return sum(step.seconds or 0.0 for step in self.to_do) / self.workers

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory of the largest steps that may run at the same time."""
        return sum(sorted((step.memory_bytes for step in self.to_do), reverse=True)[: self.workers])

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: all products that are kept, and fine-tuned models in use."""
        return sum(step.disk_bytes for step in self.to_do if step.kind != "finetune") + sum(
            sorted((step.disk_bytes for step in self.to_do if step.kind == "finetune"), reverse=True)[: self.workers]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    n_parameters: int
    vocab_size: int
    kind: str


def forecast_steps(steps: Sequence[Step], to_do: Sequence[Step], workers: int) -> LabForecast:
    """Estimate every step of a plan."""
    open_keys = {step.key for step in to_do}
    made = {step.key: _made_size(step.work) for step in steps if isinstance(step.work, PretrainWork)}
    return LabForecast(
        steps=tuple(_forecast(step, step.key not in open_keys, made) for step in steps), workers=max(1, workers)
    )


def _forecast(step: Step, done: bool, made: dict[str, _Size]) -> Forecast:
    fixed = FIXED_SECONDS[step.kind]
    seconds: float | None = fixed
    memory, disk = PROCESS_BYTES, 500_000
    match step.work:
        case PretrainWork(base=base):
            size = made[step.key]
            seconds = fixed + base.n_tokens * _training(size)
            memory, disk = _training_memory(size, base.batch_size * base.seq_len), 4 * size.n_parameters
        case CombinationWork(regime=regime, base=source):
            known = made.get(source.key) or _found_size(source)
            if known is None:
                seconds = None
            else:
                tokens = regime.epochs * regime.n_members * regime.max_length
                seconds = fixed + tokens * _training(known)
                memory = _training_memory(known, regime.batch_size * regime.max_length)
                disk = 4 * known.n_parameters
        case ExtractWork(of=work, extraction=extraction):
            known = made.get(work.base.key) or _found_size(work.base)
            tokens = _scored_tokens(work.regime)
            disk = tokens * row_width(extraction.k) * 2
            seconds = None if known is None else fixed + tokens * _scoring(known)
    return Forecast(kind=step.kind, name=step.name, done=done, seconds=seconds, memory_bytes=memory, disk_bytes=disk)


def _scored_tokens(regime: Regime) -> int:
    return (regime.n_members + regime.n_nonmembers) * regime.max_length


def _training(size: _Size) -> float:
    """Return seconds per training token."""
    return size.n_parameters / TRAINING_SPEED.get(size.kind, USUAL_SPEED)


def _scoring(size: _Size) -> float:
    """Return seconds per scored token: a forward pass of both models, and the statistics."""
    return 2 * FORWARD_SHARE * _training(size) + size.vocab_size / KERNEL_SPEED


def _training_memory(size: _Size, tokens: int) -> int:
    logits = 3 * 4 * tokens * size.vocab_size
    return PROCESS_BYTES + 4 * TRAINING_COPIES * size.n_parameters + logits


def _made_size(work: PretrainWork) -> _Size:
    with torch.device("meta"):
        model = build_base(work.base.shape(work.base.vocab_size), seed=0)
    return _Size(n_parameters=model.num_parameters(), vocab_size=work.base.vocab_size, kind=work.base.model_type)


def _found_size(source: BaseSource) -> _Size | None:
    """Return a base's size, from its files; None if it is not on this machine."""
    folder = Path(source.path)
    if folder.suffix == ".gguf" and folder.is_file():
        return _Size(n_parameters=2 * folder.stat().st_size, vocab_size=USUAL_VOCABULARY, kind="")
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    width = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    return _Size(
        n_parameters=n_bytes // width,
        vocab_size=int(config.get("vocab_size", USUAL_VOCABULARY)),
        kind=str(config.get("model_type", "")),
    )
