"""Loading a pair from wherever its models are. Safetensors only, remote code only when asked for.

Every refusal is a `ModelError` that names what was found and what to do. Embeddings are never resized.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.models.checkpoints import read_model, stored_dtype
from ltmia.models.pair import ModelOrigin, Pair
from ltmia.models.sequential import SequentialModels
from ltmia.models.sources import ModelSource, check_adapter, find_base, find_source, refuse_clearly
from ltmia.models.tokenizer_files import compare_tokens, read_tokenizer
from ltmia.models.weight_files import check_weights
from ltmia.runtime import DTYPES, dtype_name, pick_device, pick_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How models are brought in, the same for target and reference."""

    dtype: str = "auto"
    """"auto", "float32", "bfloat16" or "float16"."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Off unless the user asks."""


def load_pair(
    target: str | Path | nn.Module,
    base: str | Path | nn.Module | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    sequential: bool = False,
) -> Pair:
    """Load a fine-tuned target and its pretrained reference.

    Args:
        target: Hub id ("org/name" or "org/name@revision"), model folder, PEFT adapter, GGUF file, or a module.
        base: The same for the reference; "auto" or None finds it in the adapter's config or the model card.
        tokenizer: Only needed when both models are modules.
        dtype: Of both models. "auto" is bfloat16 if both are stored in half precision and the hardware computes in it,
            else float32.
        device: "auto" takes an accelerator if there is one.
        trust_remote_code: Allow code that comes with the models to run.
        sequential: Have only one model in memory at a time, for two that do not fit together: each is loaded when its
            turn comes, and the target's hidden states wait on disk. An adapter's weights are one copy anyway.

    Raises:
        ModelError: If a model is missing, unsafe or unusable, or the two do not share tokenizer and vocabulary.
        ConfigError: If there is no such dtype or device.
    """
    options = LoadOptions(dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if isinstance(target, nn.Module):
        return _pair_in_memory(target, base, tokenizer)
    if isinstance(base, nn.Module):
        raise ModelError("the target is a path but the base a module: give both in the same form")
    place = find_source(str(target))
    if place.is_adapter:
        check_adapter(place)
    else:
        check_weights(place)
    base_place = _base_source(place, base)
    options = one_dtype([base_place] if place.is_adapter else [place, base_place], options)
    if sequential and not place.is_adapter:
        return _pair_sequential(place, base_place, tokenizer, options)
    reference, reference_origin = load_model(base_place, options)
    shared, remarks = shared_tokenizer(place, base_place, tokenizer, options)
    if place.is_adapter:
        return Pair(
            target=_adapted(reference, place),
            tokenizer=shared,
            target_origin=replace(_origin(place, options), remarks=remarks),
            reference_origin=reference_origin,
        )
    model, origin = load_model(place, options)
    return Pair(
        target=model,
        reference=reference,
        tokenizer=shared,
        target_origin=replace(origin, remarks=origin.remarks + remarks),
        reference_origin=reference_origin,
    )


def load_alone(source: str | Path, *, tokenizer: str | Path | None = None, options: LoadOptions) -> Pair:
    """Load one model as the target of a pair of which nothing else is run.

    The reference is the model itself, or an adapter's base.

    Args:
        source: As for `load_pair`.
        tokenizer: Whose tokenizer to use in place of its own: that of a target with tokens its base does not know, to
            read texts alike.
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
    """Load one causal LM in evaluation mode.

    Raises:
        ModelError: If there is no such model, only pickled weights, or weights that are not the model's.
        ConfigError: If there is no such dtype or device.
    """
    place = source if isinstance(source, ModelSource) else find_source(source)
    options = one_dtype([place], options)
    model, remarks = read_model(
        place,
        dtype=DTYPES[options.dtype],
        device=pick_device(options.device),
        trust_remote_code=options.trust_remote_code,
    )
    return model, replace(_origin(place, options), remarks=remarks)


def one_dtype(places: Sequence[ModelSource], options: LoadOptions) -> LoadOptions:
    """Settle what "auto" means: one dtype for all these models, float32 if any of them is stored in it.

    Raises:
        ModelError: If one of the models cannot be used.
        ConfigError: If there is no such dtype or device.
    """
    device, trusted = pick_device(options.device), options.trust_remote_code
    if options.dtype != "auto":
        return replace(options, dtype=dtype_name(pick_dtype(options.dtype, torch.float32, device)))
    picked = {pick_dtype("auto", stored_dtype(place, trust_remote_code=trusted), device) for place in places}
    return replace(options, dtype=dtype_name(torch.float32 if len(picked) > 1 else picked.pop()))


def load_tokenizer(source: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    return _tokenizer_at(find_source(source), options)


def find_tokenizer(target: str, base: str | Path | None, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load a target's tokenizer, or its base's where none lies beside the target.

    Raises:
        ModelError: If there is neither.
    """
    place = find_source(target)
    return _tokenizer_at(place if place.has_tokenizer else _base_source(place, base), options)


def shared_tokenizer(
    target: ModelSource, base: ModelSource, given: PreTrainedTokenizerBase | None, options: LoadOptions
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the tokenizer of both models, and remarks on how the target's differs from the base's.

    Args:
        target: Whose tokenizer it is, if it has one.
        base: Whose is taken otherwise.
        given: What the caller wants to be used: then nothing is compared.
        options: How.

    Raises:
        ModelError: If one ordinary id means two different tokens.
    """
    if given is not None:
        return given, ()
    if not target.has_tokenizer:
        return _tokenizer_at(base, options), ()
    ours = _tokenizer_at(target, options)
    return ours, compare_tokens(ours, _tokenizer_at(base, options)) if base.has_tokenizer else ()


def _base_source(place: ModelSource, base: str | Path | None) -> ModelSource:
    if base not in (None, "auto"):
        return find_source(str(base))
    named = find_base(place)
    try:
        return find_source(named)
    except ModelError as error:
        raise ModelError(f"{place.source} names {named!r} as its base; give it with --base ({error})") from error


def _tokenizer_at(place: ModelSource, options: LoadOptions) -> PreTrainedTokenizerBase:
    return read_tokenizer(place, trust_remote_code=options.trust_remote_code)


def _adapted(model: PreTrainedModel, place: ModelSource) -> PeftModel:
    # Said outright, or PEFT would look for an accelerator of its own.
    return refuse_clearly(
        place, lambda: PeftModel.from_pretrained(model, str(place.path), torch_device=str(model.device))
    )


def _origin(place: ModelSource, options: LoadOptions) -> ModelOrigin:
    revision = place.commit or place.revision
    return ModelOrigin(source=place.source, revision=revision, trust_remote_code=options.trust_remote_code)


def _pair_sequential(
    target: ModelSource, base: ModelSource, tokenizer: PreTrainedTokenizerBase | None, options: LoadOptions
) -> Pair:
    origins = {"target": _origin(target, options), "reference": _origin(base, options)}

    def load(name: str, place: ModelSource) -> PreTrainedModel:
        model, origins[name] = load_model(place, options)
        return model

    sequential = SequentialModels(target=lambda: load("target", target), reference=lambda: load("reference", base))
    shared, remarks = shared_tokenizer(target, base, tokenizer, options)
    pair = Pair(sequential=sequential, tokenizer=shared)
    # Said last: remarks on a model are known once it was loaded.
    origin, pair.reference_origin = origins["target"], origins["reference"]
    pair.target_origin = replace(origin, remarks=origin.remarks + remarks)
    return pair


def _pair_in_memory(
    target: nn.Module,
    base: str | Path | nn.Module | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Pair:
    if tokenizer is None:
        raise ModelError("models in memory need their tokenizer: load_pair(..., tokenizer=...)")
    if isinstance(base, nn.Module):
        return Pair(target=target, reference=base, tokenizer=tokenizer)
    if base not in (None, "auto"):
        raise ModelError("the target is a module but the base a path: give both in the same form")
    return Pair(target=target, tokenizer=tokenizer)
