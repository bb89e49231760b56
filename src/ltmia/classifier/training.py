"""Training on many combinations: every batch comes from one of them, and whole other ones choose the best epoch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ltmia.classifier.combinations import Combination, tensors
from ltmia.classifier.networks import ConvNetwork
from ltmia.errors import ConfigError, LtmiaError
from ltmia.evaluation.roc import auc

PREDICT_AT_ONCE = 256
FIT_TEXTS = 64
"""Texts of each combination that the standardisation is taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a classifier is trained."""

    epochs: int = 10
    """Passes over all combinations."""
    half_batch: int = 64
    """Members per batch, and as many non-members of the same combination."""
    learning_rate: float = 2e-3
    """Highest rate, after the warm-up; falls as a cosine."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises."""
    weight_decay: float = 0.01
    """Of AdamW."""
    label_smoothing: float = 0.0
    """Labels are drawn this far from 0 and 1."""
    pairwise_weight: float = 0.5
    """Weight of the pairwise logistic loss, which ranks members above non-members within a batch."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of initialisation, batches and dropout."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: Naming the field.
        """
        for name in ("epochs", "half_batch", "learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch came to."""

    epoch: int
    loss: float
    validation_auc: float | None
    """Macro average over the held-out combinations; None without any."""


def train_network(
    network: nn.Module,
    training: Sequence[Combination],
    validation: Sequence[Combination],
    *,
    version: str,
    config: TrainingConfig,
    report: Callable[[EpochRecord], None] = lambda _record: None,
) -> list[EpochRecord]:
    """Train in place; the weights left are those of the epoch best on the held-out combinations, else the last.

    Raises:
        LtmiaError: If the loss is not a number, naming the combination.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    _fit_standardization(network, training, version)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    n_steps = config.epochs * len(_epoch_batches(training, config, np.random.default_rng(0)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, n_steps, config.warmup)
    )
    records: list[EpochRecord] = []
    best: dict[str, Tensor] = {}
    for epoch in range(config.epochs):
        network.train()
        losses = []
        for combination, rows in _epoch_batches(training, config, rng):
            value = training_step(network, combination, rows, version, config, optimizer)
            schedule.step()
            losses.append(value)
        measured = macro_auc(network, validation, version) if validation else None
        records.append(EpochRecord(epoch=epoch, loss=float(np.mean(losses)), validation_auc=measured))
        report(records[-1])
        if measured is None or measured >= max(r.validation_auc or 0.0 for r in records):
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(best)
    network.eval()
    return records


def learning_rate_factor(step: int, n_steps: int, warmup: float) -> float:
    """Return the share of the highest rate at a step: a linear rise that starts above 0, then a cosine to 0."""
    rising = max(round(warmup * n_steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(n_steps - rising, 1)))


def membership_loss(logits: Tensor, labels: Tensor, config: TrainingConfig) -> Tensor:
    """Return binary cross-entropy plus the weighted mean of log(1 + e^-(s_member - s_nonmember)) over pairs."""
    smooth = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
    pointwise = nn.functional.binary_cross_entropy_with_logits(logits, smooth)
    gaps = logits[labels == 1][:, None] - logits[labels == 0][None, :]
    return pointwise + config.pairwise_weight * nn.functional.softplus(-gaps).mean()


def predict_logits(network: nn.Module, combination: Combination, version: str) -> np.ndarray:
    """Return one logit per text of a combination; NaN where unscorable."""
    logits = np.full(len(combination.labels), np.nan)
    rows = np.concatenate([combination.members, combination.nonmembers])
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), PREDICT_AT_ONCE):
            part = rows[start : start + PREDICT_AT_ONCE]
            batch = tensors(combination.batch(part, version))
            logits[part] = network(*batch).double().numpy()
    return logits


def macro_auc(network: nn.Module, combinations: Sequence[Combination], version: str) -> float:
    """Return the mean over combinations of each one's own AUC; scores of different targets are never pooled."""
    found = []
    for combination in combinations:
        logits = predict_logits(network, combination, version)
        found.append(auc(logits[combination.members], logits[combination.nonmembers]))
    return float(np.mean(found))


def training_step(
    network: nn.Module,
    combination: Combination,
    rows: np.ndarray,
    version: str,
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Learn from some texts of one combination; return the loss.

    Raises:
        LtmiaError: If the loss is not a number.
    """
    logits = network(*tensors(combination.batch(rows, version)))
    labels = torch.from_numpy(combination.labels[rows]).float()
    loss = membership_loss(logits, labels, config)
    if not torch.isfinite(loss):
        raise LtmiaError(f"{combination.name}: the training loss is {loss.item()}; extract it again")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
    optimizer.step()
    return loss.item()


def _epoch_batches(
    combinations: Sequence[Combination], config: TrainingConfig, rng: np.random.Generator
) -> list[tuple[Combination, np.ndarray]]:
    """Cut every combination into batches of half members, half non-members, and shuffle the batches."""
    batches = []
    for combination in combinations:
        members = rng.permutation(combination.members)
        nonmembers = rng.permutation(combination.nonmembers)
        n = min(len(members), len(nonmembers))
        size = min(config.half_batch, n)
        for start in range(0, n - size + 1, size):
            part = slice(start, start + size)
            batches.append((combination, np.concatenate([members[part], nonmembers[part]])))
    order = rng.permutation(len(batches))
    return [batches[i] for i in order]


def _fit_standardization(network: nn.Module, combinations: Sequence[Combination], version: str) -> None:
    if not isinstance(network, ConvNetwork):
        return
    rows, summaries = [], []
    for combination in combinations:
        chosen = np.concatenate([combination.members[:FIT_TEXTS], combination.nonmembers[:FIT_TEXTS]])
        values, mask, summary = tensors(combination.batch(chosen, version))
        rows.append(values[mask])
        summaries.append(summary)
    network.standardize.fit(torch.cat(rows))
    network.standardize_summary.fit(torch.cat(summaries))
