"""What differentially private fine-tuning promises: settings and the budget spent. Plain data, needs no extra."""

import math
from dataclasses import dataclass

from ltmia.errors import ConfigError

PRIVACY_FILE = "privacy.json"
"""In the folder of a model fine-tuned under differential privacy: its `PrivacySpent`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpConfig:
    """Differential privacy of the training texts, each text one record."""

    epsilon: float
    """Budget of the whole run; the noise follows from it."""
    delta: float
    """Chance that the promise fails; well under 1 / number of texts."""
    max_grad_norm: float = 1.0
    """Norm that each text's gradient is clipped to."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: Naming the field.
        """
        for name in ("epsilon", "max_grad_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"dp.{name} = {getattr(self, name)}: expected more than 0")
        if not 0 < self.delta < 1:
            raise ConfigError(f"dp.delta = {self.delta}: expected a chance, such as 1e-5")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent:
    """What a run under differential privacy spent, and how."""

    epsilon: float
    """By the accountant, for `n_steps` steps; at most what was asked for."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise over `max_grad_norm`."""
    max_grad_norm: float
    sample_rate: float
    """Chance of each text to be in a batch."""
    n_steps: int
    accountant: str
