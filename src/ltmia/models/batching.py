"""Chooses how many texts go through the models at once: by length and memory, and in halves if memory runs out.

This module knows tokens and memory, but not what is run on a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltmia.errors import ModelError
from ltmia.models.tokens import EncodedText

BatchSize = int | Literal["auto"]
"""Texts of full length per forward pass; "auto": as many as memory allows, up to `MOST_TOKENS`."""
FREE_SHARE = 0.5
"""Share of the free memory that "auto" counts on; the rest is for logits, float32 heads and other processes."""
MOST_TOKENS = {"cpu": 2**10}
"""Largest number of tokens in one pass, by type of device. More tokens are no faster per token, so a larger batch is
split into several passes."""
MOST_TOKENS_ELSEWHERE = 2**14
PASSES = 16
"""The fixed cost of this many passes equals the cost of one pass with the most tokens. On a CPU, a pass then costs as
much as 64 more tokens. We measured 40 at GPT-2's size and over 100 for a tiny model."""
CGROUP_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Files with the memory limit and the memory use of a container, for cgroup versions 2 and 1."""

Result = TypeVar("Result")


def length_batches(encoded: Sequence[EncodedText], batch_size: int) -> list[list[int]]:
    """Group scorable texts of similar length: rows of each batch, longest texts first.

    Longest first: if memory runs out it does so at once. A batch holds as many tokens as `batch_size` texts of the
    longest length would, so batches of short texts hold more of them.
    """
    rows = [i for i, text in enumerate(encoded) if text.n_scored]
    rows.sort(key=lambda i: (-len(encoded[i].ids), i))
    budget = batch_size * (len(encoded[rows[0]].ids) if rows else 0)
    batches: list[list[int]] = []
    while rows:
        size = max(budget // len(encoded[rows[0]].ids), 1)
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


def pick_batch_size(
    batch_size: BatchSize, length: int, device: torch.device, run: Callable[[EncodedText], object]
) -> int:
    """Return how many texts of the longest length to run at once.

    Args:
        batch_size: A number is used unchanged.
        length: Tokens of the longest text.
        device: Device of the models.
        run: Runs a text through a model; its memory is measured.
    """
    if batch_size != "auto":
        return batch_size
    most = max(most_tokens(device) // length, 1)
    free = free_bytes(device)
    if free is None:
        return most
    with PeakMemory() as memory:
        run(EncodedText(ids=np.zeros(length, np.int64)))
    return min(most, max(int(FREE_SHARE * free) // max(memory.peak, 1), 1))


def most_tokens(device: torch.device) -> int:
    """Return the tokens per pass beyond which a device gets no faster per token."""
    return MOST_TOKENS.get(device.type, MOST_TOKENS_ELSEWHERE)


def pass_stops(lengths: Sequence[int], most: int) -> list[int]:
    """Split a batch into passes at the lowest cost: padding plus a fixed cost for each pass.

    Args:
        lengths: Tokens of the texts, which keep their order.
        most: Tokens, padding included, that a pass of several texts may have.

    Returns:
        Index after the last text of each pass; the last index is the number of texts.
    """
    per_pass = most / PASSES
    cheapest, before = [0.0], [0]
    for stop in range(1, len(lengths) + 1):
        found: list[tuple[float, int]] = []
        longest = 0
        for start in reversed(range(stop)):
            longest = max(longest, lengths[start])
            tokens = longest * (stop - start)
            if tokens > most and found:
                break
            found.append((cheapest[start] + tokens + per_pass, start))
        cost, start = min(found)
        cheapest.append(cost)
        before.append(start)
    stops = []
    stop = len(lengths)
    while stop:
        stops.append(stop)
        stop = before[stop]
    return stops[::-1]


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, a container's limit included; None if it is unknown."""
    if device.type == "cpu":
        found = [psutil.virtual_memory().available]
        for limit, used in CGROUP_FILES:
            numbers = [_number(Path("/sys/fs/cgroup", name)) for name in (limit, used)]
            if None not in numbers:
                found.append(max(numbers[0] - numbers[1], 0))  # type: ignore[operator]  # neither is None
        return min(found)
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (AttributeError, RuntimeError, NotImplementedError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


class PeakMemory(TorchDispatchMode):
    """Adds up the memory of the tensors that torch makes while this is entered; `peak` is in bytes.

    It works the same on every device. Unlike the size of the process, it does not count memory that is only cached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add up the tensors that it makes."""
        given = {StorageWeakRef(storage).cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        for storage in _storages(result):
            ref = StorageWeakRef(storage)
            if ref.cdata not in given:
                self._live[ref.cdata] = ref, storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Halving:
    """Runs batches, in halves if memory runs out; later batches start at the size that fitted."""

    def __init__(self, encoded: Sequence[EncodedText]) -> None:
        self._encoded = encoded
        self._most_tokens: int | None = None

    def run(self, rows: list[int], work: Callable[[list[int]], Result]) -> Iterator[Result]:
        """Yield the result of the work on a batch, or on each of its parts in order.

        Raises:
            ModelError: If one text alone does not fit into memory.
        """
        return self.run_all([rows], work)

    def run_all(self, batches: Sequence[list[int]], work: Callable[[list[int]], Result]) -> Iterator[Result]:
        """Do the same for several batches, one after another."""
        waiting = list(batches)
        while waiting:
            part = waiting.pop(0)
            if len(part) > 1 and self._most_tokens is not None and self._tokens(part) > self._most_tokens:
                waiting = [*_halves(part), *waiting]
                continue
            try:
                result = work(part)
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error):
                    raise
                self._learn(part, error)
                waiting = [*_halves(part), *waiting]
                continue
            yield result

    def _tokens(self, part: list[int]) -> int:
        return len(part) * max(len(self._encoded[i].ids) for i in part)

    def _learn(self, part: list[int], error: BaseException) -> None:
        if len(part) == 1:
            raise ModelError(
                f"one text of {self._tokens(part)} tokens does not fit into memory; lower `max_length`, or use "
                "`dtype=bfloat16`, `sequential=True` or `device_map=auto`"
            ) from error
        self._most_tokens = max(self._tokens(half) for half in _halves(part))
        # The error's traceback holds the tensors of the pass that failed.
        error.__traceback__ = None
        clear_device_cache(garbage_collection=True)


def _halves(part: list[int]) -> list[list[int]]:
    return [part[: len(part) // 2], part[len(part) // 2 :]]


def ran_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)
    # oneDNN says no more than this when memory runs out. The head itself is fine: it ran when the model was loaded.
    return known or "could not create a primitive" in str(error)
