"""A model's output head as a function from hidden states to float32 logits.

The logits are float32 even if the weights are half precision, because dozens of bfloat16 logits tie at each token. This
module does not know what a model does after its head.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from ltmia.kernels.bfloat16_product import has_bfloat16_product, multiply, packed
from ltmia.models.spread import gathered, loaded

HALF = (torch.bfloat16, torch.float16)
COPY_BYTES = 2**30
"""Largest copy of a half-precision head, in bytes. Of a larger head, one slice of the vocabulary at a time is copied,
for each chunk of positions: slower, but with bounded memory."""
SLICE_BYTES = 2**27
"""Bytes of one such slice."""
MIXED_DEVICES = ("cuda", "xpu")
"""Devices on which torch multiplies half-precision matrices into a float32 result, so that no copy is needed."""

Head = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor, Tensor], None]
"""Given hidden states, what was prepared from the weights, and where to: writes the logits."""


def float32_head(head: nn.Module) -> Head:
    """Return an output head that computes in float32; nothing is rounded to half precision first.

    (pred, hidden) states of any dtype to (pred, vocab) raw logits, which may lie in a buffer that the next call
    overwrites: fresh memory for logits costs as much as half the product itself. The function may hold a float32 copy
    of half-precision weights, so make it once a batch, and let it go.
    """
    if type(head) is not nn.Linear:
        return plain_float32_head(head)
    with loaded(head):  # offloaded weights stay in memory as long as the function does
        weight, bias = gathered(head.weight), None if head.bias is None else gathered(head.bias).float()
    half = _half_head(weight, bias) if weight.dtype in HALF else None
    if half is None:
        return _wide_head(weight, bias)
    wide = cache(lambda: _wide_head(weight, bias))  # made only if needed: it may copy the weights
    # Such products would round hidden states of another dtype.
    return lambda hidden: (half if hidden.dtype == weight.dtype else wide())(hidden)


def _half_head(weight: Tensor, bias: Tensor | None) -> Head | None:
    """Return a head that multiplies half-precision numbers into float32 sums, which rounds nothing.

    Returns:
        The head; None if the hardware has no such product.
    """
    if weight.device.type in MIXED_DEVICES:
        return _mixed(weight, bias)
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return _buffered(weight, bias, Tensor.float, _by_amx)
        if has_bfloat16_product() and weight.shape[1] % 2 == 0:
            return _buffered(weight, bias, packed, multiply)
    return None


def _wide_head(weight: Tensor, bias: Tensor | None) -> Head:
    """Return a head that multiplies in float32."""
    if _has_onednn(weight) and (weight.dtype not in HALF or 4 * weight.numel() <= COPY_BYTES):
        return _onednn(weight.float(), bias)
    return _buffered(weight, bias, Tensor.float, _in_float32)


def copy_bytes(n_parameters: int, dtype: torch.dtype) -> int:
    """Return the largest number of bytes that the float32 copy of a head, or of a slice of it, takes."""
    return min(4 * n_parameters, COPY_BYTES) if dtype in HALF else 0


def plain_float32_head(head: nn.Module) -> Head:
    """Do the same as `float32_head`, but let gradients flow through the head.

    Args:
        head: Any output head, such as one with an adapter of its own; half-precision weights are copied.
    """
    half = any(parameter.dtype in HALF for parameter in head.parameters())
    wide = copy.deepcopy(head).float() if half else head
    return lambda hidden: wide(hidden.float()).float()


def _has_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.is_contiguous() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _mixed(weight: Tensor, bias: Tensor | None) -> Head:
    def apply(hidden: Tensor) -> Tensor:
        logits = torch.mm(hidden.to(weight.device), weight.T, out_dtype=torch.float32)
        return logits if bias is None else logits.add_(bias)

    return apply


def _onednn(weight: Tensor, bias: Tensor | None) -> Head:
    """Multiply by oneDNN, which takes the weights as they lie.

    torch's own choice, MKL, packs all weights again at each call; for few rows this is most of the work.
    """

    def apply(hidden: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden.to(weight.device).float(), weight, bias, "none", [], "")

    return apply


def _buffered(weight: Tensor, bias: Tensor | None, prepare: Callable[[Tensor], Tensor], product: Product) -> Head:
    vocab = len(weight)
    step = vocab if 4 * weight.numel() <= COPY_BYTES else max(SLICE_BYTES // (4 * weight.shape[1]), 1)
    kept = prepare(weight) if step == vocab else None
    buffer = torch.empty(0, vocab, device=weight.device)

    def apply(hidden: Tensor) -> Tensor:
        nonlocal buffer
        rows = hidden.to(weight.device)
        if len(buffer) < len(rows):
            buffer = torch.empty(len(rows), vocab, device=weight.device)
        out = buffer[: len(rows)]
        for start in range(0, vocab, step):
            part = slice(start, start + step)
            product(rows, prepare(weight[part]) if kept is None else kept, out[:, part])
        return out if bias is None else out.add_(bias)

    return apply


def _in_float32(rows: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.mm(rows.float(), weight.T, out=out)


def _by_amx(rows: Tensor, weight: Tensor, out: Tensor) -> None:
    """Multiply by bfloat16 tiles with float32 sums, which torch uses for this precision where the CPU has them."""
    with _matmul_precision("medium"):
        _in_float32(rows, weight, out)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
