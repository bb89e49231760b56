"""What the callback does and when: the plan of a training run's audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ltmia.auditing.audit import AuditConfig
from ltmia.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """When and how a training run is audited, and what happens at a limit."""

    base: str | Path | None = None
    """Base that is fine-tuned: folder or hub id. None: the source that the model in training was loaded from."""
    every: int | None = None
    """Steps between audits, each in a folder `step-N`; there is also one at the end. None: only at the end."""
    checkpoints: int = 0
    """States to keep from within the training, evenly spaced, better 3 than 1: the audit is then that of an attacker
    who holds them. They lie in `private/checkpoints` until the last audit is done. If they cannot be read, the results
    say why; with `config.observer` "weights" or "training_run" the audit then fails."""
    limits: Sequence[str] = ()
    """Limits in the gate's form, such as "auc:0.6" or "identifiable:0"."""
    at_limit: Literal["stop", "fail"] = "stop"
    """What to do if a limit is exceeded: stop the training, or raise `LimitExceeded`."""
    log_to: Sequence[str] = ()
    """Trackers to log the figures to, see `ltmia.integrations.trackers`."""
    group_column: str | None = None
    """Column of the Trainer's datasets that names patients, authors or documents."""
    epsilon_spent: Callable[[], float] | None = None
    """Returns the epsilon that private training has spent so far, such as `lambda: engine.get_epsilon(1e-5)` with
    Opacus's `PrivacyEngine`. None: the training is not private."""
    config: AuditConfig = field(default_factory=AuditConfig)
    """Options of the audits. `max_length` is ignored: rows are scored in the length that they were trained on."""

    def __post_init__(self) -> None:
        """Refuse an impossible number of checkpoints.

        Raises:
            ConfigError: If it is below 0, or 0 for an audit that needs checkpoints.
        """
        if self.config.observer == "training_run" and not self.checkpoints:
            raise ConfigError("observer `training_run`: say how many states to keep, such as AuditPlan(checkpoints=3)")
        if self.checkpoints < 0:
            raise ConfigError(f"checkpoints = {self.checkpoints}: expected 0 or more")
