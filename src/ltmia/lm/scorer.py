"""How one model's last hidden states become float32 logits.

Does not know that models come in pairs, nor how texts are batched.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from ltmia.errors import ModelError

PROBE_LOGIT = 100.0
"""The probe scales hidden states until the largest logit is this, where no soft cap stays hidden."""
PROBE_TOLERANCE = {torch.float32: 1e-4}
"""Difference, relative to the largest logit, up to which our head counts as the model's own."""
HALF_TOLERANCE = 1e-2
"""The same for half precision: a few roundings to 8 bits."""
AHEAD_TOLERANCE = 1e-5
"""Change of a token's logits with the token after it, relative to the largest, that is float noise."""
HALF = (torch.bfloat16, torch.float16)
RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What a model raises that cannot take plain ids and a mask."""


class Scorer:
    """One model as a source of float32 logits: hidden states first, then the head on the positions asked for.

    Where the logits are a linear head on the hidden states, perhaps scaled or soft-capped, the head runs apart, in
    float32 whatever the model's dtype (bfloat16 logits tie dozens of ranks a token), and on real tokens only. A
    model that does anything else after its head is run whole.

    Raises:
        ModelError: When made of a model that cannot be run on ids alone, gives logits of a wrong shape, or looks
            ahead.
    """

    def __init__(self, model: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
        # Any: torch's types call a module's methods tensors.
        self._model = model
        self._context = context
        self._name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        if not (hasattr(model, "config") and hasattr(model, "get_output_embeddings")):
            raise ModelError(f"{self._name}: not a causal LM of transformers or PEFT")
        self._head: nn.Module | None = model.get_output_embeddings()
        self._vocab_size = self._check_forward()
        self._after_head = self._probe_head()

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
            if self._head is None or self._after_head is None:
                return self._logits(ids, mask)
            # One position is enough to keep the model's own head happy.
            with _head_input(self._head, lambda hidden: hidden[..., :1, :]) as captured:
                self._logits(ids, mask)
            return captured[0]

    def float32_head(self) -> Callable[[Tensor], Float32[Tensor, "pred vocab"]]:
        """Return the function from hidden states of some positions to raw float32 logits.

        It holds a float32 copy of half-precision head weights: make it once a batch, and let it go. Its result may
        lie in a buffer that the next call overwrites.
        """
        after_head = self._after_head
        if self._head is None or after_head is None:
            return Tensor.float
        with torch.inference_mode(), self._context():
            head = _float32_head(self._head)

        def logits(hidden: Tensor) -> Tensor:
            with torch.inference_mode(), self._context():
                return after_head(head(hidden))

        return logits

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    def _probe_ids(self) -> tuple[Tensor, Tensor]:
        ids = torch.arange(4, device=next(self._model.parameters()).device)[None]
        return ids, torch.ones_like(ids)

    @torch.inference_mode()
    def _check_forward(self) -> int:
        """Run four tokens twice, with another last one; return the width of the logits."""
        ids, mask = self._probe_ids()
        other = ids.clone()
        other[0, -1] = 0
        try:
            with self._context():
                logits, changed = (self._logits(x, mask).float() for x in (ids, other))
        except RUN_ERRORS as error:
            raise ModelError(
                f"{self._name}: does not run on token ids and a mask alone, as a causal LM does: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        if logits.shape[:-1] != ids.shape:
            raise ModelError(
                f"{self._name}: gives logits of shape {tuple(logits.shape)} for ids of shape {tuple(ids.shape)}; "
                "expected one row per id (adapters that prepend virtual tokens cannot be audited)"
            )
        ahead = (logits - changed)[:, :-1].abs().max()
        tolerance = HALF_TOLERANCE if any(p.dtype in HALF for p in self._model.parameters()) else AHEAD_TOLERANCE
        # Written so that NaN passes: broken weights make texts unscorable, which is said text by text.
        if ahead > tolerance * _largest(logits):
            raise ModelError(
                f"{self._name}: a token's logits change with the token after it, so this is no causal LM "
                "(a masked or bidirectional model?)"
            )
        return logits.shape[-1]

    @torch.inference_mode()
    def _probe_head(self) -> Callable[[Tensor], Tensor] | None:
        """Find how the model's logits follow from its head, by running four tokens both ways."""
        if self._head is None:
            return None
        ids, mask = self._probe_ids()
        with self._context():
            gain = max(PROBE_LOGIT / _largest(self._logits(ids, mask).float()), 1.0)
            with _head_input(self._head, lambda hidden: hidden * gain) as captured:
                logits = self._logits(ids, mask).float()
            if len(captured) != 1 or captured[0].shape[:2] != ids.shape:
                return None
            head = _float32_head(self._head)(captured[0] * gain)
        tolerance = PROBE_TOLERANCE.get(captured[0].dtype, HALF_TOLERANCE) * _largest(logits)
        for candidate in _after_head_candidates(self._model.config, head, logits):
            found = candidate(head)
            if found.shape == logits.shape and _all_close(found, logits, tolerance):
                return candidate
        return None


def _largest(logits: Tensor) -> float:
    """Return the largest finite magnitude; 1 when there is none, or nothing but zeros."""
    largest = float(torch.where(logits.isfinite(), logits, 0.0).abs().max())
    return largest or 1.0


def _all_close(found: Tensor, logits: Tensor, tolerance: float) -> bool:
    # Equality first: the difference of two -inf is NaN.
    return bool(((found == logits) | ((found - logits).abs() <= tolerance)).all())


def _after_head_candidates(config: Any, head: Tensor, logits: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what models are known to do after the head: nothing, scale the logits, cap them softly."""
    yield lambda x: x
    usable = head.isfinite() & (head.abs() > head.abs().median())
    if head.shape == logits.shape and bool(usable.any()):
        factor = float((logits[usable] / head[usable]).median())
        yield lambda x: x * factor
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        cap = getattr(text_config, name, None)
        if cap:
            yield lambda x, cap=cap: torch.tanh(x / cap) * cap  # type: ignore[misc]  # mypy types no defaults


def _float32_head(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return an output head whose result is float32, not float32 rounded from less.

    A plain linear head writes every result into the same buffer: fresh memory for logits costs as much as half the
    product itself. So a result lasts until the next call.
    """
    if type(head) is not nn.Linear:
        # Such as a head with an adapter of its own.
        half = any(parameter.dtype in HALF for parameter in head.parameters())
        wide = copy.deepcopy(head).float() if half else head
        return lambda hidden: wide(hidden.float()).float()
    # bfloat16 factors lose nothing in bfloat16 products with float32 sums, which the hardware does twice as fast.
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
def _head_input(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Catch what the model feeds its head, and feed the head something else instead."""
    captured: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(inputs[0])
        return (change(inputs[0]), *inputs[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        yield captured
    finally:
        handle.remove()
