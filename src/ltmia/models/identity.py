"""Identifies a model and a tokenizer by hashes of everything that decides their output.

Two models that give different numbers have different hashes. Paths, origins and library versions do not count.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, is_dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from inspect import isroutine
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.models.spread import Weights, without_hooks

VOLATILE = frozenset({
    "_name_or_path", "name_or_path", "base_model_name_or_path", "transformers_version", "peft_version", "_commit_hash",
    "inference_mode", "device_map", "init_inputs", "files_loaded", "tokenizer_file", "cache", "verbose",
    "deprecation_warnings", "warnings_issued", "_in_target_context_manager",
})  # fmt: skip
"""Keys and attributes about origin, author or history, which do not affect the output."""
LIBRARIES = frozenset({"torch", "transformers", "peft", "tokenizers"}) | sys.stdlib_module_names
"""Packages whose code is not hashed; the results name their versions."""
REMOTE_CODE = "transformers_modules"
"""Package in which transformers puts code that comes with a model."""
OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Hashes of one model in memory, one for each of its parts."""

    parameters: str
    """Weights and buffers that a checkpoint holds, with their names, shapes and dtypes."""
    config: str
    """The config as loaded, quantisation and kind of attention included."""
    modules: str
    """Attributes and hooks of all modules, buffers that checkpoints do not hold, and code that is not part of a
    library."""
    adapter: str | None
    """Configs of its adapters, active or not; None if it has none."""

    @classmethod
    def of(cls, model: Any) -> "ModelIdentity":
        """Hash a model in its present state.

        Raises:
            ModelError: If reading its weights would change them.
        """
        _refuse_repacked(model)
        return cls(
            parameters=parameters_sha256(model),
            config=_json_sha256(_plain(model.config)),
            modules=_json_sha256(_modules(model)),
            adapter=_json_sha256(_plain(configs)) if (configs := getattr(model, "peft_config", None)) else None,
        )

    @property
    def key(self) -> str:
        """One hash of all parts."""
        return _json_sha256(astuple(self))


def _refuse_repacked(model: Any) -> None:
    """Refuse 4-bit weights that bitsandbytes packed once more when they ran on a CPU.

    Its `state_dict` (0.50.2) unpacks them again with an error that changes what the model computes from then on.
    """
    for name, weight in model.named_parameters():
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"{name}: 4-bit weights that have run on a CPU cannot be read without changing them (bitsandbytes): "
                "save the model before it runs and give its folder, which is unpacked on loading, or run it on a GPU"
            )


def parameters_sha256(model: nn.Module) -> str:
    """Hash a model's parameters and their names: the same for a folder, a GGUF file and a model in memory."""
    return tensors_sha256(Weights(model, model.state_dict()))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors; their order does not matter."""
    digest = sha256()
    for name in sorted(tensors):  # one tensor at a time: offloaded ones together may not fit into memory
        _hash_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def network_sha256(network: nn.Module) -> str:
    """Hash a network that has no config: parameters, modules and code."""
    return _json_sha256([parameters_sha256(network), _modules(network)])


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the active adapters."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters]
    return sorted({name for layer in layers for name in (*layer.active_adapters, *layer.merged_adapters)})


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer: vocabulary, merges, all other processing steps, special tokens, chat template.

    If the tokenizer is written in Python, all its attributes, its vocabulary files and its code are hashed.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Every call sets truncation and padding again.
    steps = json.loads(backend.to_str()) | {"truncation": None, "padding": None} if backend is not None else None
    files = [str(getattr(tokenizer, key, "")) for key in tokenizer.vocab_files_names]
    return _json_sha256([
        type(tokenizer).__qualname__,
        steps,
        sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template,
        _plain(tokenizer.special_tokens_map),
        _plain(_without_paths(vars(tokenizer), files)),
        [sha256(Path(file).read_bytes()).hexdigest() for file in files if Path(file).is_file()],
        _own_code([type(tokenizer)]),
    ])  # fmt: skip


def _modules(model: nn.Module) -> Any:
    kept = model.state_dict().keys()
    digest = sha256()
    for name, buffer in sorted(model.named_buffers()):
        if name not in kept:
            _hash_tensor(digest, name, buffer)
    own = {name: without_hooks(module) for name, module in model.named_modules()}
    modules = {
        name: [
            type(module).__qualname__,
            module.extra_repr(),
            {key: value for key, value in own[name].items() if not (key in OF_ANY_MODULE or _is_config(value))},
            [*module._forward_hooks.values(), *module._forward_pre_hooks.values()],
        ]
        for name, module in model.named_modules()
    }
    return [digest.hexdigest(), _plain(modules), _own_code({type(module) for module in model.modules()})]


def _is_config(value: Any) -> bool:
    return isinstance(value, PreTrainedConfig)


def _own_code(classes: Iterable[type]) -> Any:
    """Return hashes of the files that define classes of no library; of those typed in, hashes of their functions."""
    found = {base for kind in classes for base in kind.__mro__ if base.__module__.partition(".")[0] not in LIBRARIES}
    names = {kind.__module__ for kind in found}
    packages = {name.rpartition(".")[0] + "." for name in names if name.startswith(REMOTE_CODE)}
    names |= {name for name in sys.modules if name.startswith(tuple(packages))}
    files = {str(getattr(sys.modules.get(name), "__file__", None)) for name in names - {"__main__"}}
    typed = {kind.__qualname__: _functions(kind) for kind in found if kind.__module__ == "__main__"}
    return [sorted(sha256(Path(file).read_bytes()).hexdigest() for file in files if Path(file).is_file()), typed]


def _functions(kind: type) -> dict[str, Any]:
    codes = {name: getattr(value, "__code__", None) for name, value in vars(kind).items()}
    return {name: _instructions(code) for name, code in codes.items() if code is not None}


def _instructions(code: CodeType) -> list[Any]:
    constants = [_instructions(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _without_paths(attributes: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """Leave out the paths of vocabulary files: only their content counts."""
    known = set(files)
    kept = {key: value for key, value in attributes.items() if not (isinstance(value, str) and value in known)}
    if isinstance(inner := kept.get("init_kwargs"), Mapping):
        kept["init_kwargs"] = _without_paths(inner, known)
    return kept


def _plain(value: Any) -> Any:
    """Turn a value into JSON: tensors into hashes, functions into their names, other objects into their class's."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return ADDRESS.sub("", value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item), sort_keys=True) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain_object(value)


def _plain_object(value: Any) -> Any:
    if isinstance(value, Tensor):
        digest = sha256()
        _hash_tensor(digest, "", value)
        return digest.hexdigest()
    if isinstance(value, PreTrainedConfig | PeftConfig) or (is_dataclass(value) and not isinstance(value, type)):
        return [type(value).__qualname__, _plain(vars(value))]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isroutine(value) or isinstance(value, type):
        return _named(value)
    if isinstance(value, torch.dtype | AddedToken):
        return repr(value)
    return type(value).__qualname__


def _named(value: Any) -> Any:
    """Name a function or class; of a function of no library the instructions count as well."""
    module = str(getattr(value, "__module__", ""))
    code = None if module.partition(".")[0] in LIBRARIES else getattr(value, "__code__", None)
    return [module, value.__qualname__, None if code is None else _instructions(code)]


def _hash_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(flat.numpy())


def _json_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
