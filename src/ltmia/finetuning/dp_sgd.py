"""DP-SGD: `transformers.Trainer` with Opacus's per-text gradients, clipping, noise and accounting.

Imported only on demand; needs the extra `dp`. The noise comes from torch's seeded generator, so that runs can be
repeated. That is good for measuring what the guarantee is worth, but it gives no guarantee to people whose texts are
used.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer

from ltmia.errors import ConfigError, ModelError
from ltmia.finetuning.privacy import DpConfig, PrivacySpent
from ltmia.finetuning.training import IGNORED_LABEL, Row
from ltmia.finetuning.training_rows import RightPadding, TextRow

SAME_GRADIENT = 1e-3
"""Relative distance up to which two computations of one gradient count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateBatches(Dataset[dict[str, Any]]):
    """All batches of a run, drawn in advance so that it can be resumed; texts are drawn independently."""

    rows: Sequence[TextRow]
    batches: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"rows": [self.rows[i].tensors() for i in self.batches[index]]}


@dataclass(frozen=True, slots=True)
class PrivateCollate:
    """Collates one drawn batch, or rows to evaluate on; an empty batch becomes a row without labels."""

    padding: RightPadding
    with_positions: bool
    """Give each text its own position ids, because shared ones have no gradient per text."""

    def __call__(self, items: list[dict[str, Any]]) -> Row:
        """Return ids, mask, labels and position ids, each (batch, longest) int64."""
        rows = [row for item in items for row in item.get("rows", [item])]
        batch = self.padding(rows or [TextRow([0, 0]).tensors()])
        if not rows:
            batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
        if self.with_positions:
            ids = batch["input_ids"]
            batch["position_ids"] = torch.arange(ids.shape[1]).expand_as(ids).contiguous()
        return batch


def plan_privacy(dp: DpConfig, n_rows: int, batch_size: int, epochs: int) -> PrivacySpent:
    """Find the noise that keeps a run within its budget.

    Raises:
        ConfigError: If delta is too large for so many texts, or no noise is enough.
    """
    if dp.delta * n_rows >= 1:
        raise ConfigError(f"dp.delta = {dp.delta}: expected less than 1 / {n_rows} texts, better a tenth of that")
    rate = min(1.0, batch_size / n_rows)
    n_steps = epochs * math.ceil(n_rows / batch_size)
    try:
        noise = get_noise_multiplier(
            target_epsilon=dp.epsilon, target_delta=dp.delta, sample_rate=rate, steps=n_steps, accountant="rdp"
        )
    except ValueError as error:
        raise ConfigError(f"dp.epsilon = {dp.epsilon}: no noise is enough for that ({error}); raise it") from error
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, n_steps)]
    return PrivacySpent(
        epsilon=float(accountant.get_epsilon(delta=dp.delta)),
        delta=dp.delta,
        noise_multiplier=float(noise),
        max_grad_norm=dp.max_grad_norm,
        sample_rate=rate,
        n_steps=n_steps,
        accountant="rdp",
    )


def draw_batches(rows: Sequence[TextRow], privacy: PrivacySpent, seed: int) -> PrivateBatches:
    """Draw all batches of a run: each text is in each batch with the same probability (Poisson sampling)."""
    sampler = UniformWithReplacementSampler(
        num_samples=len(rows),
        sample_rate=privacy.sample_rate,
        generator=torch.Generator().manual_seed(seed),
        steps=privacy.n_steps,
    )
    return PrivateBatches(rows=rows, batches=list(sampler))


def private_collate(model: nn.Module, padding: RightPadding) -> PrivateCollate:
    """Return the collation that a model needs."""
    forward: Any = getattr(model, "get_base_model", lambda: model)().forward
    return PrivateCollate(padding, "position_ids" in inspect.signature(forward).parameters)


class PrivateTrainer(Trainer):
    """A Trainer whose optimizer clips each text's gradient and adds noise."""

    def __init__(self, *, privacy: PrivacySpent, batch_size: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.privacy = privacy
        self.expected_batch_size = batch_size
        self.private_optimizer: DPOptimizer | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Wrap the usual optimizer."""
        if self.private_optimizer is None:
            self.private_optimizer = DPOptimizer(
                super().create_optimizer(model),
                noise_multiplier=self.privacy.noise_multiplier,
                max_grad_norm=self.privacy.max_grad_norm,
                expected_batch_size=self.expected_batch_size,
            )
            self.optimizer = self.private_optimizer
        return self.private_optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Clear the last batch's per-text gradients before a step, because `Trainer` clears only the sums."""
        if self.private_optimizer is not None:
            self.private_optimizer.zero_grad(set_to_none=True)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Return the mean over texts of their mean losses: no text's gradient depends on another's length."""
        return text_loss(model, inputs) if model.training else super().compute_loss(model, inputs, *args, **settings)


def text_loss(model: nn.Module, inputs: Row) -> torch.Tensor:
    """Return the mean over texts of the mean loss per predicted token, nats."""
    labels = inputs["labels"][:, 1:]
    logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return (losses.sum(1) / (labels != IGNORED_LABEL).sum(1).clamp(min=1)).mean()


@contextmanager
def per_text_gradients(
    model: nn.Module, collate: Callable[[list[Any]], Row], rows: Sequence[TextRow]
) -> Iterator[None]:
    """Let Opacus take each text's gradient from a model while the block runs.

    Args:
        model: Model whose trainable parameters require gradients.
        collate: Makes a batch of rows.
        rows: Some training rows, on which the gradients are checked.

    Raises:
        ModelError: If Opacus does not support the architecture, or computes wrong gradients for it.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name = base.config.model_type
    advice = "train it without dp, or with lora = true, or use another architecture (gpt2 and llama work)"
    try:
        hooks = GradSampleHooks(model)
        wrong = _wrong_gradients(model, hooks, collate, rows)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(f"{name}: Opacus cannot take each text's gradient ({first}); {advice}") from error
    if wrong:
        raise ModelError(f"{name}: Opacus computes a wrong gradient of {wrong[0]}; {advice}")
    try:
        yield
    finally:
        hooks.remove_hooks()


def _wrong_gradients(
    model: nn.Module, hooks: GradSampleHooks, collate: Callable[[list[Any]], Row], rows: Sequence[TextRow]
) -> list[str]:
    """Return the names of weights whose per-text gradients differ between a batch of two and each text alone."""
    pair = [row.tensors() for row in (min(rows, key=len), max(rows, key=len))]
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    model.eval()  # no dropout: it would differ between the two computations
    for module in model.modules():
        if any(weight.requires_grad for weight in module.parameters(recurse=False)):
            module.training = True  # Opacus looks only at these
    device = next(iter(trained.values())).device
    text_loss(model, _on(device, collate(pair))).backward()
    taken = {name: getattr(weight, "grad_sample", None) for name, weight in trained.items()}
    hooks.disable_hooks()
    wrong = []
    for i, row in enumerate(pair):
        loss = text_loss(model, _on(device, collate([row])))
        alone = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        wrong += [
            name
            for (name, found), own in zip(taken.items(), alone, strict=True)
            if found is None or own is None or len(found) != len(pair) or _differ(found[i], own)
        ]
    model.zero_grad()
    hooks.set_grad_sample_to_none()
    hooks.enable_hooks()
    return wrong


def _differ(found: torch.Tensor, own: torch.Tensor) -> bool:
    return bool((found - own).norm() > SAME_GRADIENT * own.norm() + 1e-6)


def _on(device: torch.device, batch: Row) -> Row:
    return {name: value.to(device) for name, value in batch.items()}
