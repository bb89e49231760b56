"""How a model is fine-tuned."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ltmia.errors import ConfigError
from ltmia.finetuning.privacy import DpConfig

Schedule = Literal["constant", "linear"]
Keep = Literal["last", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """How a model is fine-tuned."""

    epochs: int = 3
    """Number of passes over the texts."""
    learning_rate: float = 5e-5
    """Learning rate of AdamW, after the warm-up."""
    batch_size: int = 16
    """Texts per step."""
    max_length: int = 128
    """Largest number of tokens of a text; the rest is cut off."""
    lora: bool = False
    """Train low-rank adapters of all linear layers except the output head, instead of all weights."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    seed: int = 0
    """Seed of the order of texts, of dropout and of the adapters' first weights."""
    schedule: Schedule = "constant"
    """Learning rate after the warm-up: constant, or falling linearly to zero."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    keep: Keep = "last"
    """Model to keep: after the last epoch, or after the epoch with the lowest validation loss."""
    autocast: bool = True
    """Use bfloat16 autocast if the hardware supports it."""
    dp: DpConfig | None = None
    """Train under differential privacy, in full float32; needs the extra `dp`."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints of a run that writes a folder; a kill costs at most this."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        whole = ("epochs", "batch_size", "lora_rank", "lora_alpha")
        for name in (*whole, "learning_rate", "checkpoint_minutes"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} = {value}: expected more than 0")
        if self.max_length < 2:
            raise ConfigError(f"max_length = {self.max_length}: expected at least 2")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup = {self.warmup}: expected a share, 0 to under 1")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"weight_decay = {self.weight_decay}: expected 0 or more")
        _check_choices(self)


def _check_choices(config: FinetuneConfig) -> None:
    for name, choices in (("schedule", get_args(Schedule)), ("keep", get_args(Keep))):
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} = {getattr(config, name)!r}: expected {' or '.join(choices)}")
    if config.dp is not None and config.keep == "best":
        raise ConfigError('keep = "best" is not possible under dp: expected "last"')
