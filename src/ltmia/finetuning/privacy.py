"""Settings of differentially private fine-tuning, and the budget it spent. Plain data, needs no extra."""

import math
from dataclasses import dataclass

from ltmia.errors import ConfigError

PRIVACY_FILE = "privacy.json"
"""Name of the file with `PrivacySpent`, in the folder of the fine-tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpConfig:
    """Differential privacy of the training texts, each text one record."""

    epsilon: float
    """Budget of the whole run; the noise follows from it."""
    delta: float
    """Probability that the guarantee fails; should be well under 1 / number of texts."""
    max_grad_norm: float = 1.0
    """Norm that each text's gradient is clipped to."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        for name in ("epsilon", "max_grad_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"dp.{name} = {getattr(self, name)}: expected more than 0")
        if not 0 < self.delta < 1:
            raise ConfigError(f"dp.delta = {self.delta}: expected a chance, such as 1e-5")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent:
    """Budget that a run under differential privacy spent, and its settings."""

    epsilon: float
    """Epsilon spent in `n_steps` steps, by the accountant; at most the budget."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise over `max_grad_norm`."""
    max_grad_norm: float
    sample_rate: float
    """Probability that a text is in a batch."""
    n_steps: int
    accountant: str
