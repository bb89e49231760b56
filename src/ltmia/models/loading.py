"""Loads pairs of models: safetensors only, and code of a model runs only if the user allows it.

Every refusal is a `ModelError` that names what was found and what to do. Embeddings are never resized.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltmia.errors import ConfigError, ModelError
from ltmia.models.adapters import Adapted, continues, merge, put_adapter
from ltmia.models.checkpoints import read_model, stored_dtype
from ltmia.models.pair import ModelOrigin, Pair, pair_in_memory
from ltmia.models.sequential import SequentialModels
from ltmia.models.sources import ModelSource, adapter_stack, base_source, check_adapter, find_source
from ltmia.models.spread import computing_device
from ltmia.models.tokenizer_files import compare_tokens, read_tokenizer
from ltmia.models.weight_files import check_weights
from ltmia.runtime import DTYPES, dtype_name, pick_dtype
from ltmia.shown_names import shown_path


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options for loading models; the same for target and reference."""

    dtype: str = "auto"
    """"float32", "bfloat16" or "float16", of both models. "auto" is the format that both are stored in if the
    hardware computes in it, else float32."""
    device: str = "auto"
    """"auto" (an accelerator if there is one), "cpu", "cuda", "cuda:1", "mps"."""
    device_map: str | None = None
    """Instead of one device, those that each model is spread over: "auto", or limits such as "0=20GiB,cpu=60GiB"; see
    `spread.memory_limits`."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Off unless the user asks."""
    allow_hub: bool = False
    """Download a base that only an adapter's config or a model card names. Off unless the user asks."""


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions`, as keywords."""

    dtype: str
    device: str
    device_map: str | None
    trust_remote_code: bool
    allow_hub: bool


def load_pair(
    target: str | Path | nn.Module,
    base: str | Path | nn.Module | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sequential: bool = False,
    **keywords: Unpack[LoadKeywords],
) -> Pair:
    """Load a fine-tuned target and its pretrained reference.

    Args:
        target: Hub id ("org/name" or "org/name@revision"), model folder, PEFT adapter, GGUF file, or a module.
        base: The same for the reference; "auto" or None finds it in the adapter's config or the model card.
        tokenizer: Only needed when both models are modules.
        sequential: Keep only one model in memory at a time, if both together do not fit. The target's hidden states
        wait on disk until the reference is loaded. A target with an adapter that can be switched off needs no second
        copy anyway.
        **keywords: `LoadOptions`, field by field: dtype, device, device_map, trust_remote_code, allow_hub.

    Raises:
        ModelError: If a model is missing, unsafe or unusable, or the two do not share tokenizer and vocabulary.
        ConfigError: If there is no such dtype or device, or modules are given and options that say how to load.
    """
    options = LoadOptions(**keywords)
    if isinstance(target, nn.Module):
        how = asdict(replace(options, trust_remote_code=False, allow_hub=False)) | {"sequential": sequential}
        if given := [name for name, value in how.items() if value not in (None, False, "auto")]:
            raise ConfigError(
                f"`{given[0]}` says how a model is loaded, but a module is given, which runs as it is: leave it out"
            )
        return pair_in_memory(target, base, tokenizer)
    if isinstance(base, nn.Module):
        raise ModelError("the target is a path but the base a module: give both in the same form")
    source = find_source(str(target))
    if source.is_adapter:
        check_adapter(source)
    else:
        check_weights(source)
    reference_source = base_source(source, base, allow_hub=options.allow_hub)
    options = one_dtype([reference_source] if source.is_adapter else [source, reference_source], options)
    if source.is_adapter:
        return _pair_of_adapter(source, reference_source, tokenizer, options, sequential=sequential)
    if sequential:
        return _pair_sequential(source, reference_source, tokenizer, options)
    reference, reference_origin = load_model(reference_source, options)
    shared, remarks = shared_tokenizer(source, reference_source, tokenizer, options)
    model, origin = load_model(source, options)
    return Pair(
        target=model,
        reference=reference,
        tokenizer=shared,
        target_origin=replace(origin, remarks=origin.remarks + remarks),
        reference_origin=reference_origin,
    )


def load_alone(source: str | Path, *, tokenizer: str | Path | None = None, options: LoadOptions) -> Pair:
    """Load one model as the target of a pair whose reference is not run.

    The reference is the model itself, or an adapter's base.

    Args:
        source: See `target` of `load_pair`.
        tokenizer: Model whose tokenizer to use instead of its own, for example a target with tokens that its base
            lacks.
        options: How.

    Raises:
        ModelError: If the model is missing, unsafe or unusable.
        ConfigError: If there is no such dtype or device.
    """
    found = None if tokenizer is None else load_tokenizer(str(tokenizer), options)
    if find_source(str(source)).is_adapter:
        return load_pair(source, tokenizer=found, **asdict(options))
    model, origin = load_model(str(source), options)
    found = found or load_tokenizer(str(source), options)
    return Pair(target=model, reference=model, tokenizer=found, target_origin=origin, reference_origin=origin)


def load_model(source: str | ModelSource, options: LoadOptions) -> tuple[PreTrainedModel, ModelOrigin]:
    """Load one causal LM in evaluation mode; an adapter is merged into its base.

    Raises:
        ModelError: If there is no such model, only pickled weights, or weights that are not the model's.
        ConfigError: If there is no such dtype or device.
    """
    source = source if isinstance(source, ModelSource) else find_source(source)
    if source.is_adapter:
        return _load_merged(source, options)
    options = one_dtype([source], options)
    model, remarks = read_model(
        source,
        dtype=DTYPES[options.dtype],
        device=computing_device(options.device, options.device_map),
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
    )
    model.name_or_path = source.name
    return model, replace(_origin(source, options), remarks=remarks)


def one_dtype(sources: Sequence[ModelSource], options: LoadOptions) -> LoadOptions:
    """Replace the dtype "auto" by one dtype for all these models: float32 if any of them is stored in float32.

    Raises:
        ModelError: If one of the models cannot be used.
        ConfigError: If there is no such dtype or device.
    """
    device, trusted = computing_device(options.device, options.device_map), options.trust_remote_code
    if options.dtype != "auto":
        return replace(options, dtype=dtype_name(pick_dtype(options.dtype, torch.float32, device)))
    stored = (
        stored_dtype(adapter_stack(source, allow_hub=options.allow_hub)[-1], trust_remote_code=trusted)
        for source in sources
    )
    picked = {pick_dtype("auto", dtype, device) for dtype in stored}
    return replace(options, dtype=dtype_name(torch.float32 if len(picked) > 1 else picked.pop()))


def load_tokenizer(source: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; for an adapter without one, that of its base.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    return _tokenizer_at(_with_tokenizer(find_source(source), options), options)


def find_tokenizer(target: str, base: str | Path | None, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load a target's tokenizer, or its base's where none lies beside the target.

    Raises:
        ModelError: If there is neither.
    """
    source = find_source(target)
    if not source.has_tokenizer:
        source = _with_tokenizer(base_source(source, base, allow_hub=options.allow_hub), options)
    return _tokenizer_at(source, options)


def shared_tokenizer(
    target: ModelSource, base: ModelSource, given: PreTrainedTokenizerBase | None, options: LoadOptions
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the tokenizer of both models, and remarks on how the target's differs from the base's.

    Args:
        target: Whose tokenizer it is, if it has one.
        base: Its tokenizer is used if the target has none.
        given: Tokenizer that the caller gives; it is used without a comparison.
        options: How.

    Raises:
        ModelError: If one ordinary id means two different tokens.
    """
    if given is not None:
        return given, ()
    base = _with_tokenizer(base, options)
    if not target.has_tokenizer:
        return _tokenizer_at(base, options), ()
    ours = _tokenizer_at(target, options)
    return ours, compare_tokens(ours, _tokenizer_at(base, options)) if base.has_tokenizer else ()


def _with_tokenizer(source: ModelSource, options: LoadOptions) -> ModelSource:
    """Return the model itself if it has a tokenizer, or the first model beneath the adapter that has one."""
    if source.has_tokenizer:
        return source
    stack = adapter_stack(source, allow_hub=options.allow_hub)
    return next((below for below in stack if below.has_tokenizer), stack[-1])


def _tokenizer_at(source: ModelSource, options: LoadOptions) -> PreTrainedTokenizerBase:
    return read_tokenizer(source, trust_remote_code=options.trust_remote_code)


def _load_adapted(source: ModelSource, base: ModelSource, options: LoadOptions) -> tuple[Adapted, ModelOrigin]:
    """Put an adapter on its base; return the result and the origin of the base."""
    check_adapter(source)
    model, origin = load_model(base, options)
    return put_adapter(model, source), origin


def _load_merged(source: ModelSource, options: LoadOptions) -> tuple[PreTrainedModel, ModelOrigin]:
    """Load an adapter as a model of its own: merged into its base, which may be such a one itself."""
    base = adapter_stack(source, allow_hub=options.allow_hub)[1]
    adapted, origin = _load_adapted(source, base, options)
    model = merge(adapted, source)
    model.name_or_path = source.name
    merged = f"an adapter, merged into its base {shown_path(origin.source)}"
    return model, replace(_origin(source, options), remarks=(*origin.remarks, *adapted.remarks, merged))


def _pair_of_adapter(
    source: ModelSource,
    base: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None,
    options: LoadOptions,
    *,
    sequential: bool,
) -> Pair:
    beneath = _beneath(source, base, options)
    adapted, reference_origin = _load_adapted(source, beneath, options)
    shared, remarks = shared_tokenizer(source, base, tokenizer, options)
    target_origin = replace(_origin(source, options), remarks=adapted.remarks + remarks)
    apart = None if adapted.gives_base_back else "with its adapter switched off, the target is not its base"
    if beneath is not base:
        apart = f"the target is this adapter, trained further, on {shown_path(beneath.given)}"
        reference_origin = _origin(base, options)
    if apart is not None:
        remarks = (*reference_origin.remarks, f"loaded on its own: {apart}")
        reference_origin = replace(reference_origin, remarks=remarks)
        if sequential:
            del adapted
            models = SequentialModels(
                target=lambda: _load_adapted(source, beneath, options)[0].model,
                reference=lambda: load_model(base, options)[0],
            )
            return Pair(
                sequential=models, tokenizer=shared, target_origin=target_origin, reference_origin=reference_origin
            )
    return Pair(
        target=adapted.model,
        reference=None if apart is None else load_model(base, options)[0],
        tokenizer=shared,
        target_origin=target_origin,
        reference_origin=reference_origin,
    )


def _beneath(source: ModelSource, base: ModelSource, options: LoadOptions) -> ModelSource:
    """Return the model that an adapter is put on: its base, or the base below an earlier state of the same adapter."""
    if not (base.is_adapter and continues(source, base)):
        return base
    return adapter_stack(base, allow_hub=options.allow_hub)[1]


def _origin(source: ModelSource, options: LoadOptions) -> ModelOrigin:
    revision = source.commit or source.revision
    return ModelOrigin(
        source=source.given,
        revision=revision,
        trust_remote_code=options.trust_remote_code,
        trained_length=source.trained_length,
    )


def _pair_sequential(
    target: ModelSource, base: ModelSource, tokenizer: PreTrainedTokenizerBase | None, options: LoadOptions
) -> Pair:
    origins = {"target": _origin(target, options), "reference": _origin(base, options)}

    def load(name: str, source: ModelSource) -> PreTrainedModel:
        model, origins[name] = load_model(source, options)
        return model

    sequential = SequentialModels(target=lambda: load("target", target), reference=lambda: load("reference", base))
    shared, remarks = shared_tokenizer(target, base, tokenizer, options)
    pair = Pair(sequential=sequential, tokenizer=shared)
    # Read last, because remarks are known only after a model was loaded.
    origin, pair.reference_origin = origins["target"], origins["reference"]
    pair.target_origin = replace(origin, remarks=origin.remarks + remarks)
    return pair
