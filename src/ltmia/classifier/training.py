"""Trains on many combinations: each batch is from one of them, and held-out ones choose the best epoch.

An epoch depends only on the state before it and on (seed, epoch), so a resumed training gives the same weights as an
undisturbed one.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltmia.classifier.checkpoint import EpochRecord, TrainingState, best_epoch, load_checkpoint, save_checkpoint
from ltmia.classifier.combinations import Combination, CombinationRows, LabelledBatch, TrainingData, load_ahead, tensors
from ltmia.classifier.networks import ConvNetwork
from ltmia.errors import ConfigError, LtmiaError
from ltmia.evaluation.roc import auc

PREDICT_AT_ONCE = 256
FIT_TEXTS = 64
"""Number of texts of each combination from which the standardisation is computed."""
GOING_ON_SHARE = 0.15
"""Learning rate of further training, as a share of the first training's; chosen on corpora of a real LM
(docs/log.md)."""
PUBLISHED_STEPS = 37
"""Steps of a published epoch: 30 combinations of 20,000 texts in batches of 16,384."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of training a classifier."""

    epochs: int = 6
    """Number of passes over all combinations."""
    half_batch: int = 64
    """Members per batch, and as many non-members of the same combination."""
    batches_per_step: int = 1
    """Number of batches, of any combinations, whose gradients are averaged before each step."""
    learning_rate: float = 2e-3
    """Highest learning rate, after the warm-up; then it falls along a cosine."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    label_smoothing: float = 0.0
    """Label smoothing: labels are moved this far from 0 and 1."""
    pairwise_weight: float = 0.5
    """Weight of the pairwise logistic loss, which ranks members above non-members within a batch."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    patience: int | None = None
    """Stop when the held-out AUC has not risen for so many epochs; None: never early."""
    seed: int = 0
    """Seed of initialisation, batches and dropout."""

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        for name in ("epochs", "half_batch", "batches_per_step", "learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience = {self.patience}: expected at least 1 epoch, or none")
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: expected 0 or more")

    @classmethod
    def published(cls, n_texts: int, *, epochs: int = 80, **changes: Any) -> "TrainingConfig":
        """Return loss and schedule of the LT-MIA paper (arXiv 2604.03199), scaled to the data.

        Published: cross-entropy alone with labels smoothed by 0.02, 80 epochs, AdamW at 9.88e-4 with weight decay 0.028
        and gradients clipped to norm 1, 10 epochs of warm-up, then a cosine, in batches of 16,384 texts of all
        combinations. Here a step takes several batches of 64 texts, each of one combination: as many as give the
        published number of steps per epoch, `PUBLISHED_STEPS`. With fewer epochs the warm-up keeps its share.

        Args:
            n_texts: Number of texts in an epoch.
            epochs: Passes over them.
            **changes: Fields that are not part of the method: `seed`, `patience`.
        """
        half_batch = 32
        return cls(
            epochs=epochs,
            half_batch=half_batch,
            batches_per_step=max(round(n_texts / (2 * half_batch) / PUBLISHED_STEPS), 1),
            learning_rate=9.88e-4,
            warmup=0.125,
            weight_decay=0.028,
            label_smoothing=0.02,
            pairwise_weight=0.0,
            grad_clip=1.0,
            **changes,
        )

    def going_on(self) -> "TrainingConfig":
        """Return settings for further training, with a lower learning rate, so that little is forgotten."""
        return replace(self, learning_rate=GOING_ON_SHARE * self.learning_rate)


def standardize_by(network: nn.Module, data: TrainingData) -> None:
    """Compute the standardisation from some texts of each combination; the published network has none."""
    if not isinstance(network, ConvNetwork):
        return
    rows, summaries = [], []
    for combination in data.training:
        chosen = np.concatenate([combination.members[:FIT_TEXTS], combination.nonmembers[:FIT_TEXTS]])
        values, mask, summary = tensors(combination.batch(chosen, data.version))
        rows.append(values[mask])
        summaries.append(summary)
    network.standardize.fit(torch.cat(rows))
    network.standardize_summary.fit(torch.cat(summaries))


def train_network(
    network: nn.Module,
    data: TrainingData,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    report: Callable[[EpochRecord], None] = lambda _record: None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[EpochRecord]:
    """Train in place; keep the weights of the best epoch on the held-out combinations, or of the last epoch.

    Args:
        network: Network, untrained or trained on other data, with its standardisation.
        data: Training and held-out combinations.
        config: Options.
        checkpoint: File for the state after each epoch; training resumes from it if it exists. It must belong to the
            same network, data and config.
        report: Called with the result of each epoch.
        on_step: Called with the number of steps done and the total.

    Raises:
        ConfigError: If early stopping is set and nothing is held out.
        LtmiaError: If the loss is not a number; the message names the combination.
        StoreError: If the checkpoint is damaged.
    """
    if config.patience is not None and not data.validation:
        raise ConfigError(f"patience = {config.patience}: needs combinations that are held out, and there are none")
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    state = TrainingState(network=network, optimizer=optimizer)
    if checkpoint is not None and checkpoint.exists():
        load_checkpoint(state, checkpoint)
    with torch.random.fork_rng(devices=[]):
        while not _finished(state.records, config):
            _learn_epoch(state, data, config, on_step)
            if checkpoint is not None:
                save_checkpoint(state, checkpoint)
            report(state.records[-1])
    network.load_state_dict(state.best)
    network.eval()
    return state.records


def _finished(records: Sequence[EpochRecord], config: TrainingConfig) -> bool:
    since_best = len(records) - 1 - best_epoch(records) if records else 0
    return len(records) >= config.epochs or (config.patience is not None and since_best >= config.patience)


def _learn_epoch(
    state: TrainingState, data: TrainingData, config: TrainingConfig, on_step: Callable[[int, int], None]
) -> None:
    """Train for one more epoch, measure it, and add its figures to the state."""
    epoch = len(state.records)
    rng = np.random.default_rng((config.seed, epoch))
    torch.manual_seed(int(rng.integers(2**63)))
    steps = _epoch_steps(data.training, config, rng)
    n_steps = config.epochs * len(steps)
    losses = []
    state.network.train()
    with closing(load_ahead(itertools.chain(*steps), data.version)) as batches:
        for step, parts in enumerate(steps, epoch * len(steps)):
            for group in state.optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, n_steps, config.warmup)
            losses.append(training_step(state.network, batches, len(parts), config, state.optimizer))
            on_step(step + 1, n_steps)
    measured = macro_auc(state.network, data.validation, data.version) if data.validation else None
    if measured is not None and math.isnan(measured):
        raise LtmiaError(f"epoch {epoch + 1}: the network's scores are not numbers; lower the learning rate")
    state.records.append(EpochRecord(epoch=epoch, loss=float(np.mean(losses)), validation_auc=measured))
    if best_epoch(state.records) == epoch:
        state.best = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}


def learning_rate_factor(step: int, n_steps: int, warmup: float) -> float:
    """Return the learning rate at a step, as a share of the highest: a linear rise from above 0, then a cosine to 0."""
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
    batches: Iterator[LabelledBatch],
    n_batches: int,
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Take one step on the next batches, each of one combination; return their mean loss.

    Raises:
        LtmiaError: If the loss is not a number.
    """
    optimizer.zero_grad()
    total = 0.0
    for batch in itertools.islice(batches, n_batches):
        loss = membership_loss(network(*batch.inputs), batch.labels, config) / n_batches
        if not torch.isfinite(loss):
            raise LtmiaError(f"{batch.name}: the training loss is {loss.item()}; extract it again")
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
    optimizer.step()
    return total


def _epoch_steps(
    combinations: Sequence[Combination], config: TrainingConfig, rng: np.random.Generator
) -> list[list[CombinationRows]]:
    """Split combinations into batches of half members, half non-members; shuffle them and assign them to steps."""
    batches: list[CombinationRows] = []
    for combination in combinations:
        members = rng.permutation(combination.members)
        nonmembers = rng.permutation(combination.nonmembers)
        n = combination.n_pairs
        size = min(config.half_batch, n)
        for start in range(0, n - size + 1, size):
            part = slice(start, start + size)
            batches.append((combination, np.concatenate([members[part], nonmembers[part]])))
    order = rng.permutation(len(batches))
    together = config.batches_per_step
    return [[batches[i] for i in order[start : start + together]] for start in range(0, len(batches), together)]
