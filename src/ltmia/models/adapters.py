"""Puts a PEFT adapter on its base. Every tensor of the adapter's file must reach the model.

Also tests whether switching the adapter off restores the base. This module does not look for models.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from peft.utils.save_and_load import get_base_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltmia.errors import ModelError
from ltmia.models.identity import tensors_sha256
from ltmia.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelSource, check_adapter, read_json, refuse_clearly
from ltmia.models.spread import (
    Weights,
    check_in_memory,
    input_device,
    is_offloaded,
    make_room,
    named_weights,
    offloaded_names,
)

ADAPTER_NAME = "default"
"""Name that PEFT gives to the only adapter of a model."""
WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)  # fmt: skip
"""Parts of names that torch.compile, DDP, FSDP, activation checkpointing or DeepSpeed put in front of the model's own
names."""
PEFT_PREFIX = "base_model.model."
"""Prefix that PEFT puts before the base's own names."""
RESIDUAL_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Ways to initialise LoRA that subtract its first weights from the base. The base under such an adapter differs from
the base that was given."""
UNREPEATABLE_STARTS = ("corda", "lora_ga", "pissa_niter")
"""Ways of initialising that cannot be repeated, because they use training data or random numbers."""
NEEDS_WEIGHTS = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
"""Settings of LoRA with which PEFT reads or copies the base's weights."""
LEAST_ALIKE, ALIKE = 0.25, 0.5
"""Two adapters count as the same one, trained further, if all but the first share of their tensors correlate by more
than the second number."""
TRIAL_SHAPE = (4, 16)
"""Texts and tokens of the trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A base with its adapter on."""

    model: PeftModel
    """In evaluation mode; the base given, changed in place."""
    gives_base_back: bool
    """Whether the model with its adapter switched off is the base as it was."""
    remarks: tuple[str, ...]
    """Remarks for the reader of the results."""


def put_adapter(base: PreTrainedModel, source: ModelSource) -> Adapted:
    """Put the adapter of a folder on its base.

    Raises:
        ModelError: If a tensor that the adapter's config asks for is missing from its file, if the file holds one that
            has no place in the base, or if the adapter cannot be put on this base.
    """
    folder = Path(str(source.path))
    config = refuse_clearly(source, lambda: PeftConfig.from_pretrained(str(folder)))
    _refuse_unrepeatable(config, source)
    before = refuse_clearly(source, lambda: _BaseState.of(base, Weights(base, base.state_dict())))
    if is_offloaded(base):
        _check_plain(config, source)
    config.inference_mode = True
    # PEFT warns when the base's name is another one than the config's: a base may be moved.
    config.base_model_name_or_path = base.name_or_path
    model: PeftModel = refuse_clearly(source, lambda: get_peft_model(base, config))
    if is_offloaded(base):
        make_room(model)
    given = refuse_clearly(source, lambda: load_file(folder / ADAPTER_WEIGHTS))
    weights = _renamed(given, model, source)
    moved = len(given.keys() - weights.keys())
    _check_names(_converted(weights, model), model, source)
    # Tensors of the base that lie in the adapter's file too are offloaded, or filled; both are compared below.
    offloaded = offloaded_names(model)
    there = {name: tensor for name, tensor in weights.items() if name not in offloaded}
    refuse_clearly(source, lambda: _fill(model, there, source))
    _check_arrived(_converted(weights, model), model, source)
    model.eval()
    with model.disable_adapter():
        after = _BaseState.of(model, base_parameters(model))
    remarks = [*_unknown_settings(config, source)]
    if moved:
        remarks.append(
            f"{moved} of the adapter's {len(given)} tensors have names of a wrapped model; they were read all the same"
        )
    if _same(after.logits, refuse_clearly(source, lambda: _trial_logits(model))):
        remarks.append("switching the adapter on changes nothing on a trial: was it trained?")
    return Adapted(model=model, gives_base_back=after.equals(before), remarks=tuple(remarks))


def _check_plain(config: Any, source: ModelSource) -> None:
    """Refuse an adapter that PEFT computes from the base's weights, when these are offloaded.

    Raises:
        ModelError: If it is one, or may be one.
    """
    used = [name for name in NEEDS_WEIGHTS if getattr(config, name, None)]
    used += [changed] if (changed := changes_base(config)) is not None else []
    if config.peft_type != PeftType.LORA or used:
        what = f" with {', '.join(used)}" if used else ""
        raise ModelError(
            f"{source.given}: an adapter of type {config.peft_type.value}{what} needs the base's weights in memory, "
            "and some are offloaded; only plain LoRA does not: leave out `device_map`, allow it more memory, or merge "
            "the adapter into its base once (load_model(...), then save_pretrained) and give that folder"
        )


def merge(adapted: Adapted, source: ModelSource) -> PreTrainedModel:
    """Merge an adapter into its base, so that another adapter can be put on both.

    Raises:
        ModelError: If adapters of its kind cannot be merged, or the base's weights are not all in memory.
    """
    # PEFT would write the merged weights beside the model's files.
    check_in_memory(adapted.model, f"{source.given}: an adapter is merged into the base's weights")
    if adapted.model.active_peft_config.is_prompt_learning:
        raise ModelError(f"{source.given}: an adapter of virtual tokens cannot be the base of another model")
    merged: PreTrainedModel = refuse_clearly(source, lambda: adapted.model.merge_and_unload(safe_merge=True))
    return merged.eval()


def base_parameters(model: nn.Module) -> Mapping[str, Tensor]:
    """Return a model's parameters; for a model with an adapter those of its base, under the base's own names."""
    own = get_base_model_state_dict(model) if isinstance(model, PeftModel) else named_weights(model)
    return Weights(model, own)


def continues(source: ModelSource, earlier: ModelSource) -> bool:
    """Say whether an adapter is a later state of another one, and not a new adapter on top of it.

    The correlation of their tensors decides, because the configs of both kinds name the same base. Tensors that start
    at zero do not correlate between two independent trainings, even if both used the same seed.

    Raises:
        ModelError: If one of the two cannot be read.
    """
    ours, theirs = (_in_order(source), _in_order(earlier))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return False
    pairs = (torch.stack([a.flatten(), b.flatten()]).float() for a, b in zip(ours, theirs, strict=True))
    alike = torch.stack([torch.corrcoef(pair)[0, 1].nan_to_num() for pair in pairs])
    return bool(alike.quantile(LEAST_ALIKE) > ALIKE)


def _in_order(source: ModelSource) -> list[Tensor]:
    check_adapter(source)
    weights = refuse_clearly(source, lambda: load_file(Path(str(source.path)) / ADAPTER_WEIGHTS))
    return [weights[name] for name in sorted(weights)]


def check_gives_base_back(model: PeftModel) -> None:
    """Refuse a PEFT model whose base is changed even when its adapters are switched off.

    Raises:
        ModelError: If it is so; the message names the setting.
    """
    for name, config in model.peft_config.items():
        if (changed := changes_base(config)) is not None:
            raise ModelError(
                f"the adapter {name!r} has {changed}, which changes the base's own weights, so that switching it off "
                "does not give the base back: give the base as well"
            )


def changes_base(config: Any) -> str | None:
    """Return the setting of an adapter's config that changes the base's own weights; None if there is none."""
    start, bias = str(getattr(config, "init_lora_weights", "")).lower(), getattr(config, "bias", "none")
    if start.startswith(RESIDUAL_STARTS):
        return f"init_lora_weights = {start!r}"
    return None if bias == "none" else f"bias = {bias!r}"


@dataclass(frozen=True, slots=True)
class _BaseState:
    """State of a base: it must be the same again when the adapter is switched off."""

    sha256: str
    logits: Tensor

    @classmethod
    def of(cls, model: Any, weights: Mapping[str, Tensor]) -> "_BaseState":
        return cls(tensors_sha256(weights), _trial_logits(model))

    def equals(self, other: "_BaseState") -> bool:
        return self.sha256 == other.sha256 and _same(self.logits, other.logits)


@torch.inference_mode()
def _trial_logits(model: Any) -> Tensor:
    """Return the logits of a few texts whose ids are spread over the whole vocabulary."""
    n_ids = model.config.get_text_config().vocab_size
    ids = torch.linspace(0, n_ids - 1, TRIAL_SHAPE[0] * TRIAL_SHAPE[1]).long().view(TRIAL_SHAPE)
    ids = ids.to(input_device(model))
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits.float().cpu()


def _same(logits: Tensor, others: Tensor) -> bool:
    # Not torch.equal: broken weights give NaN on both sides.
    return logits.shape == others.shape and torch.allclose(logits, others, rtol=0, atol=0, equal_nan=True)


def _refuse_unrepeatable(config: PeftConfig, source: ModelSource) -> None:
    start = str(getattr(config, "init_lora_weights", "")).lower()
    if start.startswith(UNREPEATABLE_STARTS):
        raise ModelError(
            f"{source.given}: {ADAPTER_CONFIG} says init_lora_weights = {start!r}: before training, this changed the "
            "base in a way that cannot be computed again, so the model cannot be put together; save the adapter as "
            "plain LoRA, with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _unknown_settings(config: PeftConfig, source: ModelSource) -> Iterable[str]:
    written = read_json(Path(str(source.path)) / ADAPTER_CONFIG)
    unknown = sorted(name for name, value in written.items() if value and not hasattr(config, name))
    if unknown:
        yield f"{ADAPTER_CONFIG} has settings that the PEFT installed here does not know: {', '.join(unknown)}"


def _saved(model: PeftModel) -> dict[str, Tensor]:
    """Return the adapter's tensors under the names that PEFT saves them by."""
    # Given explicitly, because PEFT would otherwise look for the base to see whether its vocabulary has grown.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _converted(weights: Mapping[str, Tensor], model: PeftModel) -> dict[str, Tensor]:
    """Return the file's tensors as PEFT loads them into architectures whose layers have got other names since."""
    config = model.peft_config[ADAPTER_NAME]
    return convert_peft_adapter_state_dict_for_transformers(model, config, dict(weights), ADAPTER_NAME)


def _renamed(given: Mapping[str, Tensor], model: PeftModel, source: ModelSource) -> dict[str, Tensor]:
    """Remove from names what wrappers and another adapter name have added.

    Raises:
        ModelError: If two tensors then have the same name.
    """
    saved, state = _saved(model), model.state_dict()
    own = {part for name in state for part in name.split(".")}
    by_place = {tensor.data_ptr(): name for name, tensor in saved.items()}
    in_model = {name: by_place[tensor.data_ptr()] for name, tensor in state.items() if tensor.data_ptr() in by_place}
    weights: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in given.items():
        plain = ".".join(part for part in name.split(".") if part in own or part not in WRAPPERS)
        found = plain if plain in saved else _without_adapter_name(plain, in_model)
        if found in weights:
            raise ModelError(
                f"{source.given}: {ADAPTER_WEIGHTS} holds both {origins[found]} and {name}, two adapters for one "
                "place; save one alone"
            )
        weights[found], origins[found] = tensor, name
    return weights


def _without_adapter_name(name: str, in_model: Mapping[str, str]) -> str:
    """Return the name that PEFT saves a tensor by, given that in a model whose adapter has any name."""
    parts = name.split(".")
    for i in range(len(parts)):
        found = in_model.get(".".join([*parts[:i], ADAPTER_NAME, *parts[i + 1 :]]))
        if found is not None:
            return found
    return name


def _check_names(weights: Collection[str], model: PeftModel, source: ModelSource) -> None:
    expected, state = _saved(model).keys(), model.state_dict().keys()
    missing = sorted(name for name in expected if name not in weights)
    # Grown or trained embeddings may be saved beside the adapter, under their own names.
    foreign = sorted(name for name in weights if name not in expected and name not in state)
    for names, wrong, cure in (
        (foreign, "have no place in the base", "is this the base it was trained on?"),
        (missing, "are missing, which its config asks for", "save the adapter again with save_pretrained"),
    ):
        if names:
            raise ModelError(
                f"{source.given}: {len(names)} tensors of {ADAPTER_WEIGHTS} {wrong}, the first is {names[0]}; {cure}"
            )


def _fill(model: PeftModel, weights: dict[str, Tensor], source: ModelSource) -> None:
    try:
        set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not mismatches:
            raise
        raise ModelError(
            f"{source.given}: {len(mismatches)} tensors of {ADAPTER_WEIGHTS} have other shapes than the base needs, "
            f"{mismatches[0].rstrip('.')}; is this the base it was trained on?"
        ) from error


def _check_arrived(weights: Mapping[str, Tensor], model: PeftModel, source: ModelSource) -> None:
    """Compare the model with the file, bit for bit except for a wider or narrower dtype."""
    loaded = Weights(model, model.state_dict() | _saved(model))
    for name, tensor in weights.items():
        there = loaded[name].cpu()
        if not torch.equal(there.nan_to_num(), tensor.cpu().to(there.dtype).nan_to_num()):
            raise ModelError(
                f"{source.given}: after loading, {name} has other values in the model than in {ADAPTER_WEIGHTS}"
            )
