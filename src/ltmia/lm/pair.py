"""The two models of an audit, side by side: target, reference, and the tokenizer both share.

Knows how a model's last hidden states become float32 logits, and which ids the two models have in
common. Does not know where models come from (`loading`) nor how texts are batched (`forward`).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ltmia.errors import ModelError

PROBE_TOLERANCE = 2e-2
"""Relative difference up to which our float32 head counts as the model's own, bfloat16 rounding
included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """Where a model came from, for provenance."""

    source: str = "memory"
    revision: str | None = None
    trust_remote_code: bool = False


class Scorer:
    """One model as a source of float32 logits: hidden states first, then the head on the positions asked for.

    Where the logits are a linear head on the hidden states, perhaps scaled or soft-capped, the
    head runs apart, in float32 whatever the model's dtype (bfloat16 logits tie dozens of ranks a
    token), and on real tokens only. A model that does anything else after its head is run whole.
    """

    def __init__(self, model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._model: Any = model
        self._context = context
        self._head: nn.Module = self._model.get_output_embeddings()
        self._after_head = self._probe()

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def runs_head_apart(self) -> bool:
        """Whether hidden states and logits can be computed separately."""
        return self._after_head is not None

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run the model without its head; (batch, seq) ids to (batch, seq, hidden).

        For a model that is run whole these are the logits themselves.
        """
        with self._context():
            if self._after_head is None:
                return self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            with _head_input(self._head) as captured:
                self._model(input_ids=ids, attention_mask=mask, use_cache=False)
            return captured[0]

    def float32_head(self) -> Callable[[Tensor], Float32[Tensor, "pred vocab"]]:
        """Return the function from hidden states of some positions to raw float32 logits.

        It holds a float32 copy of half-precision head weights: make it once a batch, and let it
        go. Its result may lie in a buffer that the next call overwrites.
        """
        after_head = self._after_head
        if after_head is None:
            return Tensor.float
        head = _float32_head(self._head)

        def logits(hidden: Tensor) -> Tensor:
            with torch.inference_mode(), self._context():
                return after_head(head(hidden))

        return logits

    @torch.inference_mode()
    def _probe(self) -> Callable[[Tensor], Tensor] | None:
        """Find how the model's logits follow from its head, by running four tokens both ways."""
        device = next(self._model.parameters()).device
        ids = torch.arange(4, device=device)[None]
        mask = torch.ones_like(ids)
        with self._context():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            self._vocab_size: int = logits.shape[-1]
            if self._head is None:
                return None
            with _head_input(self._head) as captured:
                self._model(input_ids=ids, attention_mask=mask, use_cache=False)
            if len(captured) != 1 or captured[0].shape[:2] != ids.shape:
                return None
            head = _float32_head(self._head)(captured[0])
        for candidate in _after_head_candidates(self._model.config, head, logits):
            found = candidate(head)
            scale = logits.abs().max().clamp(min=1e-6)
            if found.shape == logits.shape and (found - logits).abs().max() <= PROBE_TOLERANCE * scale:
                return candidate
        return None


def _after_head_candidates(config: Any, head: Tensor, logits: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what models are known to do after the head: nothing, scale the logits, cap them softly."""
    yield lambda x: x
    usable = head.abs() > head.abs().median()
    if head.shape == logits.shape and bool(usable.any()):
        factor = float((logits[usable] / head[usable]).median())
        yield lambda x: x * factor
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        cap = getattr(config, name, None)
        if cap:
            yield lambda x, cap=cap: torch.tanh(x / cap) * cap  # type: ignore[misc]


def _float32_head(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return an output head whose result is float32, not float32 rounded from less.

    A plain linear head writes every result into the same buffer: fresh memory for logits costs as
    much as half the product itself. So a result lasts until the next call.
    """
    if type(head) is not nn.Linear:
        return lambda hidden: head(hidden).float()
    # bfloat16 factors lose nothing in bfloat16 products with float32 sums, which the hardware does
    # twice as fast.
    precision = "medium" if head.weight.dtype == torch.bfloat16 else "highest"
    weight = head.weight.float().T
    bias = None if head.bias is None else head.bias.float()
    buffer = torch.empty(0, weight.shape[1], device=weight.device)

    def apply(hidden: Tensor) -> Tensor:
        nonlocal buffer
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        if len(buffer) < len(rows):
            buffer = torch.empty(len(rows), weight.shape[1], device=weight.device)
        out = buffer[: len(rows)]
        with _matmul_precision(precision):
            if bias is None:
                torch.mm(rows, weight, out=out)
            else:
                torch.addmm(bias, rows, weight, out=out)
        return out.reshape(*hidden.shape[:-1], -1)

    return apply


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _head_input(head: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what the model feeds its head, and let the head itself do one position only."""
    captured: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(inputs[0])
        return (inputs[0][..., :1, :], *inputs[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        yield captured
    finally:
        handle.remove()


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
        self.target_scorer = Scorer(self.target, nullcontext)
        if self.reference is None:
            without_adapter: Any = self.target.disable_adapter
            self.reference_scorer = Scorer(self.target, without_adapter)
        else:
            self.reference_scorer = Scorer(self.reference, nullcontext)

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
        limits = [getattr(model.config, "max_position_embeddings", None) for model in self._modules()]
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
