"""Models larger than one device: accelerate spreads their weights over accelerators, memory and disk.

A weight that does not fit onto the device that computes waits in memory or in the model's files: it is offloaded. Its
parameter is then a tensor without numbers ("meta"), and a hook of accelerate loads them each time its module runs. All
code that reads weights without running their module must read them through this one.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, _accelerate_added_attributes
from accelerate.utils import align_module_device, get_max_memory
from accelerate.utils.modeling import has_offloaded_params
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ltmia.errors import ConfigError, ModelError
from ltmia.models.allocator import return_large_blocks
from ltmia.models.batching import free_bytes
from ltmia.models.offload_files import remember_files
from ltmia.runtime import pick_device

FREE_SHARE = 0.6
"""Share of the free memory of each device that "auto" gives to the weights of the next model; the other model of a pair
and the passes need memory too."""
LIMIT = re.compile(r"(cpu|mps|\d{1,4})=(\d{1,15}(?:\.\d+)?)([TGMK]i?B)", re.IGNORECASE | re.ASCII)
"""One limit of a device map, such as `0=20GiB`; a unit in small letters is the same one."""
POWERS = "KMGT"
WRAPPER_NAMES = frozenset({"base_layer", "original_module", "token_adapter"})
"""Names that PEFT puts between the base's own names."""
META = torch.device("meta")

Place = int | str
"""Number of an accelerator, "mps" or "cpu", as in a `max_memory` of accelerate; "disk" has no limit."""


def memory_limits(device_map: str) -> dict[Place, int]:
    """Return the largest number of bytes of one model's weights in each place; the rest stays on disk.

    Args:
        device_map: "auto", or limits such as "0=20GiB,cpu=60GiB".

    Raises:
        ConfigError: If it is neither, or names an accelerator that is not here.
    """
    free = get_max_memory()
    if device_map == "auto":
        if "cpu" in free:  # accelerate does not know of a container's limit
            free["cpu"] = min(free["cpu"], free_bytes(torch.device("cpu")) or 0)
        return {place: int(FREE_SHARE * n_bytes) for place, n_bytes in free.items()}
    found: dict[Place, int] = {}
    for given in device_map.split(","):
        limit = LIMIT.fullmatch(given.strip())
        if limit is None:
            raise ConfigError(
                f"`device_map={device_map}`: {given!r}: expected auto, or limits as in 0=20GiB,cpu=60GiB (number of an "
                "accelerator, mps or cpu; then KB, MB, GB, TB, KiB, MiB, GiB or TiB)"
            )
        place: Place = int(limit[1]) if limit[1].isdecimal() else limit[1].lower()
        if place in found:
            raise ConfigError(f"`device_map={device_map}`: {place} is given twice")
        if place != "cpu" and place not in free:
            raise ConfigError(f"`device_map={device_map}`: no accelerator {place} here")
        found[place] = int(float(limit[2]) * _unit_bytes(limit[3].upper()))
    return found


def _unit_bytes(unit: str) -> int:
    """Return the bytes of a unit such as GIB or GB; accelerate reads gb as bits."""
    return (1024 if "I" in unit else 1000) ** (1 + POWERS.index(unit[0]))


def computing_device(device: str, device_map: str | None) -> torch.device:
    """Return the device that computes; of a device map the first accelerator, or the CPU if there is none.

    Raises:
        ConfigError: If there is no such device, or both are given.
    """
    if device_map is None:
        return pick_device(device)
    if device != "auto":
        raise ConfigError("`device` and `device_map` both say where the models run: leave out one of them")
    first = next((place for place, n_bytes in memory_limits(device_map).items() if n_bytes), "cpu")
    return torch.device(first)


def spread_keywords(device_map: str, folder: str) -> dict[str, Any]:
    """Return the keywords with which transformers spreads a model; the folder takes weights that had to be converted.

    Raises:
        ConfigError: As `memory_limits`.
    """
    return {"device_map": "auto", "max_memory": memory_limits(device_map), "offload_folder": folder}


def settle(model: Any) -> None:
    """Finish the loading of a spread model.

    Args:
        model: The model.

    Raises:
        ModelError: If an offloaded weight cannot be loaded or has another shape than the model, or if the model changes
            its weights when it runs.
    """
    if not is_offloaded(model):
        return
    remember_files(model)
    return_large_blocks()
    every = getattr(model.config, "rescale_every", 0)
    if 0 < every < model.config.num_hidden_layers:  # RWKV; offloaded weights would stay as stored
        check_in_memory(model, f"{model.name_or_path}: the model rescales its weights when it first runs")
    _check_offloaded(model)


def is_offloaded(model: nn.Module) -> bool:
    """Say whether some weights of a model are loaded only while their module runs."""
    return any(weight.device == META for weight in model.parameters())


def is_split(model: nn.Module) -> bool:
    """Say whether some weights of a model are split over the processes of a launcher."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def without_adapter(model: Any) -> Any:
    """Return the model inside a model of PEFT; any other one as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's parameters by name, tied ones once, even if they are offloaded and thus become two tensors."""
    tied = getattr(without_adapter(model), "all_tied_weights_keys", {})
    return {
        name: weight for name, weight in model.named_parameters() if weight.device != META or own_name(name) not in tied
    }


def n_parameters(model: nn.Module) -> int:
    """Count a model's parameters; tied ones count once."""
    return sum(weight.numel() for weight in named_weights(model).values())


def offloaded_names(model: nn.Module) -> set[str]:
    """Return the names, in the `state_dict`, of the tensors that are loaded only while their module runs."""
    return {name for name, tensor in model.state_dict().items() if tensor.device == META}


def offloaded_share(model: nn.Module) -> float:
    """Return the share of a model's parameters that are loaded only while their module runs."""
    weights = named_weights(model).values()
    return sum(weight.numel() for weight in weights if weight.device == META) / max(n_parameters(model), 1)


def largest_offloaded_bytes(model: nn.Module) -> int:
    """Return the largest number of bytes that one module's offloaded weights take while it runs."""
    sizes = (
        sum(weight.numel() * weight.element_size() for weight in module.parameters(recurse=False))
        for module in model.modules()
        if has_offloaded_params(module)
    )
    return max(sizes, default=0)


def places_of(model: nn.Module) -> list[str]:
    """Return the names of the places of a model's weights, such as cuda:0, cpu and disk."""
    spread = getattr(without_adapter(model), "hf_device_map", None)
    if spread is None:
        return [str(input_device(model))]
    return [_name(place) for place in dict.fromkeys(spread.values())]


def _name(place: Any) -> str:
    return str(torch.device(place)) if isinstance(place, int) else str(place)


def input_device(model: nn.Module) -> torch.device:
    """Return the device where a model takes its ids, and gives its logits.

    Raises:
        ModelError: If its first weights are offloaded, but not by a hook of accelerate.
    """
    first = next(model.parameters())
    if first.device != META:
        return first.device
    hooks: list[Any] = [module._hf_hook for module in model.modules() if has_offloaded_params(module)]
    for hook in hooks:
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    raise ModelError("the model's weights hold no numbers (device meta): load it from its files")


class Weights(Mapping[str, Tensor]):
    """Tensors of a model by name; an offloaded one is loaded, to the CPU, when it is asked for, and is not kept.

    Args:
        model: A model, with or without an adapter.
        tensors: Its `state_dict`, its parameters, or some of them, under its own names or those of an adapter's base.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._hooked: dict[str, tuple[nn.Module, str]] = {}
        for root in (without_adapter(model), model):
            for path, module in root.named_modules():
                if not has_offloaded_params(module):
                    continue
                for leaf, _ in module.named_parameters(recurse=False):
                    name = f"{path}.{leaf}" if path else leaf
                    self._hooked[name] = self._hooked[own_name(name)] = module, leaf

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor with its numbers.

        Raises:
            ModelError: If it has none, and no hook of accelerate to load them.
        """
        tensor = gathered(self._tensors[name])
        if tensor.device != META:
            return tensor
        found = self._hooked.get(name) or self._hooked.get(own_name(name))
        if found is None:
            raise ModelError(f"{name} holds no numbers (device meta), and accelerate does not know where they are")
        module, leaf = found
        with loaded(module):
            return getattr(module, leaf).detach().cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check_offloaded(model: nn.Module) -> None:
    """Load every offloaded weight once: transformers does not compare their shapes with those of the model."""
    names = offloaded_names(model)
    weights = Weights(model, {name: tensor for name, tensor in model.state_dict().items() if name in names})
    for name in weights:
        try:
            weights[name]
        except (ValueError, OSError, LookupError, SafetensorError) as error:
            raise ModelError(f"{model.name_or_path}: {name} cannot be loaded from its files: {error}") from error


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole: if it is split over the processes of a launcher, all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """Load a module's own offloaded weights; a tensor that is still referred to afterwards keeps its numbers.

    Raises:
        ModelError: If one of them holds no numbers all the same.
    """
    with align_module_device(module):
        for name, weight in module.named_parameters(recurse=False):
            if weight.device == META:
                raise ModelError(f"{type(module).__name__}.{name} holds no numbers (device meta), even when loaded")
        yield


def make_room(model: nn.Module) -> None:
    """Give a LoRA adapter memory for its numbers: PEFT makes its tensors like the base's, which are offloaded."""
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base = layer.get_base_layer()
        for part in layer.modules():
            if part is not base and any(weight.device == META for weight in part.parameters(recurse=False)):
                part.to_empty(device=input_device(base), recurse=False)


def own_name(name: str) -> str:
    """Return a parameter's name in the base; names of an adapter's own parameters stay foreign to it."""
    return ".".join(piece for piece in name.removeprefix("base_model.model.").split(".") if piece not in WRAPPER_NAMES)


def without_hooks(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes without what accelerate adds when it spreads a model."""
    attributes = dict(vars(module))
    if not isinstance(attributes.get("_hf_hook"), AlignDevicesHook):
        return attributes
    before = attributes.pop("_old_forward")
    for name in ("_hf_hook", "hf_device_map", *_accelerate_added_attributes):
        attributes.pop(name, None)
    hooked = attributes.pop("forward")
    if getattr(getattr(hooked, "func", None), "__module__", None) != AlignDevicesHook.__module__:
        attributes["forward"] = hooked
    elif getattr(before, "__func__", None) is not type(module).forward:
        attributes["forward"] = before
    return attributes


def check_in_memory(model: nn.Module, reads: str) -> None:
    """Refuse a model with offloaded weights for work that needs all of them at once.

    Args:
        model: The model.
        reads: The work, and what it reads, as a clause that begins the message.

    Raises:
        ModelError: If some are offloaded, or split over processes.
    """
    if is_split(model):
        raise ModelError(f"{reads}, but the weights are split over several processes: load each model whole")
    if is_offloaded(model):
        raise ModelError(
            f"{reads}, but {100 * offloaded_share(model):.0f} % of the weights are offloaded and loaded only while "
            "their layer runs: leave out `device_map`, or allow it more memory"
        )
