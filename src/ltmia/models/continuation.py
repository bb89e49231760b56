"""Continues the beginnings of texts with one model: with the most likely token each time, and at random.

Random choices follow from given numbers, so they depend neither on what else is in a batch nor on its size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ltmia.errors import ModelError
from ltmia.models.runner import RUN_ERRORS, ModelRunner
from ltmia.models.spread import input_device

Beginnings = Int64[np.ndarray, "batch seq"]
Numbers = Float64[np.ndarray, "batch new"]
"""For each token to be written, a number from 0 to 1 that chooses it; NaN chooses the most likely one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    never: tuple[int, ...] = ()
    """Token ids that are not drawn."""


PLAIN = Sampling()


class ByNumbers(LogitsProcessor):
    """Chooses tokens by numbers: the first token at which the sum of the probabilities exceeds the number."""

    def __init__(self, numbers: Numbers, n_given: int, vocab_size: int, sampling: Sampling) -> None:
        self._numbers, self._n_given, self._vocab_size = torch.from_numpy(numbers), n_given, vocab_size
        self._temperature, self._never = sampling.temperature, list(sampling.never)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave only the chosen token of each row possible."""
        logits = scores[:, : self._vocab_size].cpu().double() / self._temperature
        logits[:, self._never] = -torch.inf
        number = self._numbers[:, input_ids.shape[1] - self._n_given, None]
        sums = logits.softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(sums, number.nan_to_num() * sums[:, -1:], right=True)
        chosen = torch.where(number.isnan(), logits.argmax(-1, keepdim=True), drawn.clamp(max=logits.shape[1] - 1))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, chosen.to(scores.device), 0.0)


@torch.inference_mode()
def continue_beginnings(
    runner: ModelRunner,
    beginnings: Beginnings,
    numbers: Numbers,
    vocab_size: int,
    sampling: Sampling = PLAIN,
) -> Int64[np.ndarray, "batch new"]:
    """Write tokens after beginnings of equal length.

    Args:
        runner: Runs the model.
        beginnings: Token ids, special tokens included.
        numbers: Choose the tokens.
        vocab_size: Only ids below this are written.
        sampling: How tokens are drawn; by default at temperature 1 among all tokens.

    Raises:
        ModelError: If the model cannot do that.
    """
    n_given, n_new = beginnings.shape[1], numbers.shape[1]
    ids = torch.from_numpy(beginnings)
    choice = LogitsProcessorList([ByNumbers(numbers, n_given, vocab_size, sampling)])
    with runner.generating() as model, _plain_generation(model, n_new):
        device = input_device(model)
        try:
            written = model.generate(
                input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device), logits_processor=choice
            )
        except RUN_ERRORS as error:
            if should_reduce_batch_size(error):
                raise
            raise ModelError(f"{runner.name}: continues no text: {type(error).__name__}: {str(error)[:300]}") from error
    return np.asarray(written[:, n_given:].cpu().numpy(), np.int64)


@contextmanager
def _plain_generation(model: Any, n_new: int) -> Iterator[None]:
    """Replace a model's own settings of generation, which would change the probabilities, or end a text early."""
    own = model.generation_config
    model.generation_config = GenerationConfig(max_new_tokens=n_new, do_sample=False, use_cache=True)
    try:
        yield
    finally:
        model.generation_config = own
