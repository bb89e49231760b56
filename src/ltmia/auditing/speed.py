"""Measures how fast a device does what an audit consists of, in a few seconds and without a model's weights."""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ltmia.models.head import float32_head
from ltmia.models.sizes import ModelShape
from ltmia.scoring.bench import BenchConfig, extraction_of, random_pair, random_texts
from ltmia.scoring.extraction import extract_batches

Clock = Callable[[], float]
WIDEST = 2048
"""Longer sides of a matrix are cut to this: a larger product takes as long for each FLOP."""
LEAST_SECONDS = 0.05
"""Each kind of work is repeated for this long, and `REPEATS` times at least."""
REPEATS = 3
EFFICIENCY = 0.8
"""Share of the speed of bare matrix products that whole layers reach here: norms, activations and rotations take the
rest. Measured: 0.7 for GPT-2's layers, 0.8 to 1 for Llama's."""
SIDE_TEXTS = 4
LONGEST_SIDE_TEXT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a device for one model shape."""

    layers: float
    """FLOPs per second of the layers' matrix products, as a whole model reaches them."""
    attention: float
    """FLOPs per second of attention."""
    head: float
    """FLOPs per second of the output head in float32."""
    token_seconds: float
    """Seconds per token for everything beside the two models: statistics, attacks, tokens."""


def measure_speed(
    shape: ModelShape,
    *,
    tokens: int,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> Speed:
    """Measure a device with products of a model's own shapes.

    Args:
        shape: The model.
        tokens: Tokens in one pass.
        length: Tokens of each text.
        dtype: Dtype of the model.
        device: The device.
        clock: Clock in seconds.
    """
    watch = _Watch(device, clock)
    with torch.inference_mode():
        return Speed(
            layers=EFFICIENCY * _layers(shape, tokens, dtype, watch),
            attention=_attention(shape, length, dtype, watch),
            head=_head(shape, tokens, dtype, watch),
            token_seconds=_token_seconds(shape, length, watch),
        )


@dataclass(frozen=True, slots=True)
class _Watch:
    device: torch.device
    clock: Clock

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of some work, after a first time that is not counted."""
        self._once(work)
        taken: list[float] = []
        while len(taken) < REPEATS or sum(taken) < LEAST_SECONDS:
            taken.append(self._once(work))
        return statistics.median(taken)

    def random(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype)

    def _once(self, work: Callable[[], object]) -> float:
        started = self.clock()
        work()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock() - started


def _layers(shape: ModelShape, tokens: int, dtype: torch.dtype, watch: _Watch) -> float:
    """Return the FLOPs per second of all matrix products together."""
    flops: Counter[tuple[int, int]] = Counter()
    for product in shape.products:
        flops[min(product.n_in, WIDEST), min(product.n_out, WIDEST)] += product.n_active
    seconds = 0.0
    for (n_in, n_out), n_active in flops.items():
        weight, rows = watch.random(n_out, n_in, dtype=dtype), watch.random(tokens, n_in, dtype=dtype)
        taken = watch.seconds(lambda rows=rows, weight=weight: functional.linear(rows, weight))  # type: ignore[misc]  # mypy types no defaults
        seconds += n_active * taken / (n_in * n_out * tokens)
    return 2 * sum(flops.values()) / seconds


def _attention(shape: ModelShape, length: int, dtype: torch.dtype, watch: _Watch) -> float:
    """Return the FLOPs per second of one head's attention in a padded batch."""
    size = max(shape.attention.head_sizes // 2, 1)
    heads = max(shape.attention.n_heads, 1)
    states = watch.random(1, heads, length, size, dtype=dtype)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=watch.device).tril()
    taken = watch.seconds(lambda: functional.scaled_dot_product_attention(states, states, states, attn_mask=mask))
    return 4 * length**2 * heads * size / taken


def _head(shape: ModelShape, tokens: int, dtype: torch.dtype, watch: _Watch) -> float:
    """Return the FLOPs per second of the head on hidden states."""
    n_in, n_out = min(shape.hidden_size, WIDEST), min(shape.vocab_size, 4 * WIDEST)
    linear = torch.nn.Linear(n_in, n_out, bias=False, device=watch.device, dtype=dtype)
    head, rows = float32_head(linear), watch.random(tokens, n_in, dtype=dtype)
    return 2 * n_in * n_out * tokens / watch.seconds(lambda: head(rows))


def _token_seconds(shape: ModelShape, length: int, watch: _Watch) -> float:
    """Return the seconds per token of an extraction with models that are next to nothing."""
    n_tokens = min(max(length, 3), LONGEST_SIDE_TEXT)
    config = BenchConfig(
        vocab_size=shape.vocab_size,
        hidden_size=8,
        n_layers=1,
        n_heads=1,
        n_texts=SIDE_TEXTS,
        n_tokens=n_tokens,
        batch_size=SIDE_TEXTS,
    )
    pair, texts = random_pair(config, watch.device), random_texts(config)
    taken = watch.seconds(lambda: deque(extract_batches(pair, texts, extraction_of(config)), maxlen=0))
    return taken / (SIDE_TEXTS * n_tokens)
