"""State of a training after an epoch, and its checkpoint: one safetensors file with JSON in its header.

Knows no data and no loss. Nothing is pickled. No state of a random generator is kept, because each epoch has its own
seed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ltmia.errors import StoreError
from ltmia.folders import write_whole

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """Figures of one epoch."""

    epoch: int
    """Number of the epoch, from 0."""
    loss: float
    """Mean loss over its steps."""
    validation_auc: float | None
    """AUC, averaged over the held-out combinations; None without any."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Everything that the next epoch depends on, except data and settings."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    records: list[EpochRecord] = field(default_factory=list)
    """Figures of the finished epochs."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The network's weights after the best epoch."""


def best_epoch(records: Sequence[EpochRecord]) -> int:
    """Return the first epoch with the highest held-out AUC; the last epoch where nothing is held out."""
    measured = [-1.0 if record.validation_auc is None else record.validation_auc for record in records]
    if all(record.validation_auc is None for record in records):
        return len(records) - 1
    return measured.index(max(measured))


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Write the state to the checkpoint at `path`."""
    tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    records = [asdict(record) for record in state.records]
    note = {"records": json.dumps(records), "sha256": _digest(tensors, json.dumps(records))}
    write_whole(path, lambda part: save_file(tensors, part, note))


def load_checkpoint(state: TrainingState, path: Path) -> None:
    """Load a checkpoint into a new state.

    Raises:
        StoreError: If the file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, because the alignment of mapped memory varies, and with it the last bit of sums.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  no mapping
            note = file.metadata() or {}
        if note["sha256"] != _digest(tensors, note["records"]):
            raise ValueError("its contents do not match their hash")
        state.records = [EpochRecord(**record) for record in json.loads(note["records"])]
        state.network.load_state_dict(_under("network", tensors))
        state.best = _under("best", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer", tensors).items():
            index, _, kind = name.partition(".")
            moments.setdefault(int(index), {})[kind] = tensor
        state.optimizer.load_state_dict(
            {"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]}
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise StoreError(
            f"{path}: not a usable checkpoint ({type(error).__name__}: {error}); remove {path.parent} to train "
            "from the start"
        ) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _digest(tensors: Mapping[str, Tensor], records: str) -> str:
    digest = hashlib.sha256(records.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
