"""The weight delta of a fine-tune: matrices in which target and base differ, and models on the line between the two.

Only this module depends on how Hugging Face adapters and linear layers keep their matrices; it computes nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ltmia.errors import ModelError
from ltmia.models.identity import active_adapters
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.spread import check_in_memory, own_name

LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""Finds the first number in a parameter's name, which is the number of its layer."""
ZERO_AT_FIRST = (True, "gaussian", "eva")
"""Values of PEFT's `init_lora_weights` with which lora_B starts at zero and the base stays as it is."""
START_AT_ZERO = ("lora_B", "lora_embedding_A")
"""Parts of an adapter that are zero when its training starts."""
Layout = Literal["linear", "transposed", "other"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChangedMatrix:
    """A matrix of a numbered layer that the target and its base do not share."""

    name: str
    """Name of the parameter, the same in both models."""
    layer: int
    """Number of the layer it belongs to."""
    layout: Layout
    """"linear": a `torch.nn.Linear` multiplies by it, (out, in). "transposed": (in, out), as GPT-2 keeps its matrices.
    "other": anything else of two or more axes."""
    target: Tensor
    """Matrix in the target."""
    base: Tensor | None
    """Matrix in the base; None means zeros, the start of an adapter."""


def is_adapter(pair: Pair) -> bool:
    """Say whether the target is a base with a PEFT adapter on it."""
    return hasattr(pair.target, "peft_config")


def changed_matrices(pair: Pair) -> list[ChangedMatrix]:
    """Return the matrices of numbered layers that fine-tuning changed, in the order of the model.

    For an adapter these are its `lora_B` matrices, which start at zero. Its `lora_A` matrices start at random numbers,
    which are not stored.

    Raises:
        ModelError: If there are none, or they cannot be compared.
    """
    changed = [matrix for matrix in shared_matrices(pair) if not _is_same(matrix)]
    if not changed:
        other = _other_changes(pair)
        raise ModelError(
            f"fine-tuning changed no matrix of the target's layers, only other weights, such as {other}: the update is "
            "read from those matrices alone"
            if other
            else "target and base hold the same weights, so there is no update to read: give the fine-tuned model as "
            "target"
        )
    return changed


def _other_changes(pair: Pair) -> str | None:
    """Return the name of a weight that fine-tuning changed, if there is one."""
    theirs = {} if pair.reference is None else dict(pair.reference.named_parameters())
    for name, weight in pair.target.named_parameters():
        base = theirs.get(name)
        if base is not None and (base.shape != weight.shape or not torch.equal(weight, base.to(weight))):
            return name
    return None


def shared_matrices(pair: Pair) -> list[ChangedMatrix]:
    """Return the matrices that fine-tuning could change, whether it did or not; see `changed_matrices`.

    Raises:
        ModelError: If there are none, or they cannot be compared.
    """
    if pair.is_sequential:
        raise ModelError(
            "the update is read from two models side by side: keep both in memory, without `sequential=True`"
        )
    for model in (pair.target, pair.reference):
        if model is not None:
            check_in_memory(model, "the update is read together with gradients, which need all weights in memory")
    found = _adapter_matrices(pair) if is_adapter(pair) else _full_matrices(pair)
    if not found:
        raise ModelError(
            "the target's adapter changes no linear layer that has a number: the update is read from those alone"
            if is_adapter(pair)
            else "no matrix of the target has a counterpart in the base: is this really its base?"
        )
    return found


@contextmanager
def model_between(pair: Pair, point: float) -> Iterator[ModelRunner]:
    """Give a runner of the model at a point on the line from the base (0) to the target (1).

    Between the ends, the target's own weights are changed while the context is entered; this takes memory for one more
    model. Nothing else may use the target meanwhile.
    """
    if point == 1:
        yield pair.target_runner
    elif point == 0 and not is_adapter(pair):
        yield pair.reference_runner
    else:
        ends = _adapter_path(pair) if is_adapter(pair) else _full_path(pair)
        kept = [parameter.data for parameter, _ in ends]
        try:
            with torch.inference_mode(False), torch.no_grad():
                for parameter, base in ends:
                    parameter.data = torch.lerp(base.to(parameter.data), parameter.data, point)
            yield pair.target_runner
        finally:
            for (parameter, _), data in zip(ends, kept, strict=True):
                parameter.data = data


def run_model(pair: Pair, point: float) -> nn.Module:
    """Return the module that `model_between` runs."""
    if pair.is_sequential:
        raise ValueError("a point between two models needs both in memory")
    return pair.reference if point == 0 and not is_adapter(pair) else pair.target


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module that holds a parameter."""
    return model.get_submodule(name.rpartition(".")[0])


def _full_matrices(pair: Pair) -> list[ChangedMatrix]:
    theirs = dict(pair.reference.named_parameters())
    left_out = {id(weight) for weight in _vocabulary_weights(pair.target)}
    found = []
    for name, weight in pair.target.named_parameters():
        numbered, base = LAYER.search(name), theirs.get(name)
        if numbered is None or base is None or weight.ndim < 2 or base.shape != weight.shape or id(weight) in left_out:
            continue
        if not (weight.is_floating_point() and base.is_floating_point()):
            raise ModelError(
                f"{name} is stored as {weight.dtype} in the target and {base.dtype} in the base: the update of "
                "quantised weights cannot be read; load both as float32 or bfloat16"
            )
        layout = _layout(owner_of(pair.target, name), name)
        found.append(ChangedMatrix(name=name, layer=int(numbered[1]), layout=layout, target=weight, base=base))
    return found


def _vocabulary_weights(model: Any) -> Iterator[nn.Parameter]:
    for module in (*model.modules(), model.get_output_embeddings()):
        if isinstance(module, nn.Embedding) or module is model.get_output_embeddings():
            yield from () if module is None else module.parameters()


def _adapter_matrices(pair: Pair) -> list[ChangedMatrix]:
    model = pair.target
    _check_adapters(model)
    for name, weight, _ in _moved_in_the_base(pair):
        if weight.ndim > 1 and LAYER.search(name):
            raise ModelError(
                f"under the target's adapter, {name} differs from the reference, so the adapter is only a part of the "
                "update: merge it into the target (`merge_and_unload`), or give the model under it as the reference"
            )
    found = []
    for name, weight in _adapter_weights(model, "lora_B"):
        numbered = LAYER.search(name)
        layout = _layout(owner_of(model, name), name)
        if numbered is not None and layout == "linear":
            found.append(ChangedMatrix(name=name, layer=int(numbered[1]), layout=layout, target=weight, base=None))
    return found


def _check_adapters(model: Any) -> None:
    for name in active_adapters(model):
        config = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            raise ModelError(
                f"adapter {name!r} is of type {kind}: only the update of LORA and DoRA adapters can be read"
            )
        start = getattr(config, "init_lora_weights", True)
        if start not in ZERO_AT_FIRST:
            raise ModelError(
                f"adapter {name!r} was made with init_lora_weights = {start!r}, so where it started is unknown: its "
                f"update cannot be read (known: {', '.join(map(str, ZERO_AT_FIRST))})"
            )


def _adapter_weights(model: Any, part: str) -> Iterator[tuple[str, nn.Parameter]]:
    active = active_adapters(model)
    for name, weight in model.named_parameters():
        pieces = name.split(".")
        if part in pieces and pieces[pieces.index(part) + 1] in active:
            yield name, weight


def _layout(owner: nn.Module, name: str) -> Layout:
    if not name.endswith(".weight"):
        return "other"
    return "linear" if type(owner) is nn.Linear else "transposed" if type(owner) is Conv1D else "other"


def _is_same(matrix: ChangedMatrix) -> bool:
    if matrix.base is None:
        return not bool(matrix.target.any())
    return torch.equal(matrix.target, matrix.base.to(matrix.target))


def _full_path(pair: Pair) -> list[tuple[nn.Parameter, Tensor]]:
    theirs = dict(pair.reference.named_parameters())
    ours = [(weight, theirs.get(name)) for name, weight in pair.target.named_parameters()]
    return [(weight, base.data) for weight, base in ours if base is not None and base.shape == weight.shape]


def _adapter_path(pair: Pair) -> list[tuple[nn.Parameter, Tensor]]:
    """Return all parameters that move while an adapter is trained, except `lora_A`, with their values in the base."""
    model = pair.target
    ends = [(weight, base.data) for _, weight, base in _moved_in_the_base(pair)]
    for part in START_AT_ZERO:
        ends += [(weight, torch.zeros_like(weight.data)) for _, weight in _adapter_weights(model, part)]
    for part, start in (
        ("lora_magnitude_vector", _lengths_of_rows),
        ("modules_to_save", _saved_module_before),
        ("trainable_tokens_delta", _tokens_before),
    ):
        for name, weight in _adapter_weights(model, part):
            owner, _, rest = name.partition(f".{part}.")
            adapter, _, inner = rest.partition(".")
            ends.append((weight, start(model.get_submodule(owner), adapter, inner)))
    return ends


def _lengths_of_rows(layer: Any, _adapter: str, _inner: str) -> Tensor:
    """Return where DoRA starts: at the length of each row of the base's matrix."""
    matrix = layer.get_base_layer().weight.data
    rows = matrix.T if getattr(layer, "fan_in_fan_out", False) else matrix
    return torch.linalg.vector_norm(rows.float(), dim=1)


def _saved_module_before(wrapper: Any, _adapter: str, inner: str) -> Tensor:
    """Return a parameter of a module that was trained whole, as it is in the base."""
    before: Tensor = wrapper.original_module.get_parameter(inner).data
    return before


def _tokens_before(layer: Any, adapter: str, _inner: str) -> Tensor:
    """Return the rows of the base's embedding for the tokens that were trained."""
    rows: Tensor = layer.get_base_layer().weight.data[layer.token_indices[adapter]]
    return rows


def _moved_in_the_base(pair: Pair) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield parameters under an adapter that differ from the reference, such as trained biases, and their values there.

    Without a reference of its own, a pair has none.
    """
    theirs = {} if pair.reference is None else {own_name(name): p for name, p in pair.reference.named_parameters()}
    for name, weight in pair.target.named_parameters():
        base = theirs.get(own_name(name))
        if base is None or base.shape != weight.shape or not weight.is_floating_point():
            continue
        if not torch.equal(weight, base.to(weight)):
            yield name, weight, base
