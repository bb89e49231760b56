"""The two models of an audit, side by side: target, reference, and the tokenizer both share.

Does not know where models come from (`loading`) nor how texts are batched (`forward`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.models.adapters import check_gives_base_back
from ltmia.models.runner import ModelRunner
from ltmia.models.sequential import SequentialModels
from ltmia.models.spread import input_device

LENGTH_LIMITS = ("max_position_embeddings", "max_seq_len")
"""Names of the longest input length in configs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """Origin of a model, for provenance."""

    source: str = "memory"
    revision: str | None = None
    trust_remote_code: bool = False
    remarks: tuple[str, ...] = ()
    """Changes made to its weights while loading."""
    trained_length: int | None = None
    """Tokens of each text that it was fine-tuned on, where its folder says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state of the target from within its training run; loaded when it is needed."""

    source: str
    load: Callable[[], "Pair"]
    """Loads it as the target of a pair, with the same base."""
    place: str = ""
    """Absolute path, or hub id; empty for a state in memory."""
    is_known: bool = False
    """Whether it is known to be of the target's training run, so that its weights need not tell."""


IN_MEMORY = ModelOrigin()
"""Origin of a model that was given as a module, not loaded."""


class Pair:
    """A target, its reference, and their tokenizer."""

    def __init__(
        self,
        *,
        target: nn.Module | None = None,
        reference: nn.Module | None = None,
        sequential: SequentialModels | None = None,
        tokenizer: PreTrainedTokenizerBase,
        target_origin: ModelOrigin = IN_MEMORY,
        reference_origin: ModelOrigin = IN_MEMORY,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> None:
        """Take both models, and find out how to run them.

        Args:
            target: The fine-tuned model.
            reference: Its base. Without one, the target must be a PEFT model: the reference is then the same weights
                with the adapter switched off, so one copy serves both.
            sequential: Loads one model at a time; replaces both if they do not fit into memory together.
            tokenizer: Tokenizer of both.
            target_origin: Origin of the target.
            reference_origin: Origin of the reference.
            checkpoints: Earlier states of the target, in the order of training.

        Raises:
            ModelError: If the two cannot be run, or not together.
        """
        self.tokenizer = tokenizer
        self.target_origin = target_origin
        self.reference_origin = reference_origin
        self.checkpoints = tuple(checkpoints)
        self._target, self._reference, self._sequential = target, reference, sequential
        if sequential is None and reference is None and not hasattr(target, "disable_adapter"):
            raise ModelError("a pair needs a reference: give the base model, or a PEFT model as the target")
        limits = [*self._look_at_target(), *self._look_at_reference()]
        self.max_positions = min(limits, default=None)
        """Longest input that both models take, in tokens; None if no config gives one."""
        if sequential is not None and not self.target_runner.runs_head_apart:
            raise ModelError(
                "the target does something unknown after its output head, so its logits, not its "
                "hidden states, would have to wait on disk: leave out `sequential=True`"
            )

    def _look_at_target(self) -> list[int]:
        """Find out where and how the target runs; return its limits on length."""
        model = self.target.eval()
        self.device = input_device(model)
        """Device where both models take ids and give logits."""
        self.dtype = next(model.parameters()).dtype
        """Dtype of the target's weights."""
        self.target_runner = ModelRunner(lambda: self.target, nullcontext)
        return length_limits(model.config)

    def _look_at_reference(self) -> list[int]:
        model = self.reference
        if model is None:
            self.reference_dtype = self.dtype
            """Dtype of the reference's weights."""
            self.reference_runner = ModelRunner(lambda: self.target, self.target.disable_adapter)
            return []
        device, self.reference_dtype = input_device(model.eval()), next(model.parameters()).dtype
        if device != self.device:
            raise ModelError(f"target and reference are on different devices, {self.device}, {device}: move one")
        self.reference_runner = ModelRunner(lambda: self.reference, nullcontext)
        return length_limits(model.config)

    @property
    def target(self) -> Any:
        """The fine-tuned model; if only one model is in memory at a time, this loads it."""
        return self._target if self._sequential is None else self._sequential("target")

    @property
    def reference(self) -> Any:
        """The base, loaded like `target`; None if it is the target with its adapter switched off."""
        return self._reference if self._sequential is None else self._sequential("reference")

    @property
    def is_sequential(self) -> bool:
        """Whether only one of the models is in memory at a time."""
        return self._sequential is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids that both models know; logits are compared on ids below it."""
        return min(self.target_runner.vocab_size, self.reference_runner.vocab_size)


def pair_in_memory(
    target: nn.Module, base: str | Path | nn.Module | None, tokenizer: PreTrainedTokenizerBase | None
) -> Pair:
    """Make a pair of modules; without a base, of a PEFT model.

    Raises:
        ModelError: If the tokenizer is missing, the base is a path, or the target's base is not restored without its
            adapter.
    """
    if tokenizer is None:
        raise ModelError("models in memory need their tokenizer: load_pair(..., tokenizer=...)")
    if isinstance(base, nn.Module):
        return Pair(target=target, reference=base, tokenizer=tokenizer)
    if base not in (None, "auto"):
        raise ModelError("the target is a module but the base a path: give both in the same form")
    if isinstance(target, PeftModel):
        check_gives_base_back(target)
    return Pair(target=target, tokenizer=tokenizer)


def length_limits(config: Any) -> list[int]:
    """Return the longest inputs, in tokens, that a model's config gives; usually one."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(text_config, name, None) for name in LENGTH_LIMITS]
    return [int(limit) for limit in limits if limit]
