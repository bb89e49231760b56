"""The two models of an audit, side by side: target, reference, and the tokenizer both share.

Does not know where models come from (`loading`) nor how texts are batched (`forward`).
"""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.lm.scorer import Scorer

LENGTH_LIMITS = ("max_position_embeddings", "max_seq_len")
"""What configs call the longest input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """Where a model came from, for provenance."""

    source: str = "memory"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(kw_only=True)
class Pair:
    """A target, its reference, and their tokenizer.

    Without a `reference`, the target must be a PEFT model: the reference is then the same weights
    with the adapter switched off, so one copy serves both.
    """

    target: nn.Module
    reference: nn.Module | None = None
    tokenizer: PreTrainedTokenizerBase
    target_origin: ModelOrigin = field(default_factory=ModelOrigin)
    reference_origin: ModelOrigin = field(default_factory=ModelOrigin)

    def __post_init__(self) -> None:
        if self.reference is None and not hasattr(self.target, "disable_adapter"):
            raise ModelError("a pair needs a reference: give the base model, or a PEFT model as the target")
        for model in self._modules():
            model.eval()
        devices = {str(next(model.parameters()).device) for model in self._modules()}
        if len(devices) > 1:
            raise ModelError(f"target and reference lie on different devices, {', '.join(sorted(devices))}: move one")
        self.target_scorer = Scorer(lambda: self.target, nullcontext)
        if self.reference is None:
            without_adapter: Any = self.target.disable_adapter
            self.reference_scorer = Scorer(lambda: self.target, without_adapter)
        else:
            self.reference_scorer = Scorer(lambda: self.reference, nullcontext)

    @property
    def vocab_size(self) -> int:
        """Number of ids both models know: logits are compared on [0, vocab_size)."""
        return min(self.target_scorer.vocab_size, self.reference_scorer.vocab_size)

    @property
    def device(self) -> torch.device:
        """Device of the target's weights."""
        return next(self.target.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """Longest input both models take; None when neither says."""
        configs: list[Any] = [model.config for model in self._modules()]
        texts = [config.get_text_config() if hasattr(config, "get_text_config") else config for config in configs]
        limits = [getattr(config, name, None) for config in texts for name in LENGTH_LIMITS]
        known = [int(limit) for limit in limits if limit]
        return min(known) if known else None

    def _modules(self) -> list[nn.Module]:
        return [self.target] if self.reference is None else [self.target, self.reference]


def parameters_sha256(model: nn.Module) -> str:
    """Hash a model's parameters and their names: the same for a folder, a GGUF file and a model in memory."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy())
    return digest.hexdigest()
