"""Loads one model from its files. Every weight comes from the files, and every weight of the files is used or reported.

transformers gives weights that are missing in a checkpoint random values, and drops weights that it does not know. This
module reads its loading report and refuses such a model. Quantised weights are unpacked, so that all other code sees
ordinary weights of one dtype.
"""

import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.utils.quantization_config import GgufConfig

from ltmia.errors import ModelError
from ltmia.models.gguf_files import check_gguf
from ltmia.models.offload_files import converted_weights
from ltmia.models.sources import ModelSource, refuse_clearly
from ltmia.models.spread import settle, spread_keywords
from ltmia.models.weight_files import check_names, check_weights
from ltmia.runtime import dtype_name

INNER_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
"""Names of wrapper modules that compiling, sharding and checkpointing add inside a model."""
OUTER_WRAPPERS = rf"module|_forward_module|base_model\.model|{INNER_WRAPPERS}"
"""Names of wrappers around the whole model."""
PLACES = 6
"""Largest number of positions in one name at which inner wrappers are found, such as a block, its MLP and an expert."""
UNWRAPPED: Mapping[str, str] = {
    rf"^(?:(?:{OUTER_WRAPPERS})\.)+": "",
    # transformers replaces a pattern once in a name; the empty groups make another pattern of the same.
    **{rf"\.(?:(?:{INNER_WRAPPERS})\.)+" + "(?:)" * place: "." for place in range(PLACES)},
}
"""Patterns in names of weights, and their replacements, which give the model's own names."""

HARMLESS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|position_ids|(?:attn|attention)\.(?:bias|masked_bias|causal_mask)"
    r"|embed_positions\.weights)$"
)
"""Buffers in older checkpoints that the model computes itself: positions and causal masks."""

UNPACKED_ON_LOADING = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
"""Quantisation methods whose weights transformers unpacks during loading, on any hardware."""
UNPACKED_AFTERWARDS = ("bitsandbytes",)
"""Quantisation methods whose weights it unpacks after loading."""
PACKAGES = {"compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
"""Package that each method needs."""

Shape = tuple[int, ...]


def read_config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """Check the weight files of a model that is not a GGUF file, and read its config.

    Raises:
        ModelError: If there is none, or the weights are missing, unsafe, or quantised in a way that is not unpacked.
    """
    check_weights(source)
    config = read_config_alone(source, trust_remote_code=trust_remote_code)
    check_unpackable(source, config)
    method = _quantised_by(config)
    package = None if method is None else PACKAGES.get(method)
    if package is not None and find_spec(package) is None:
        raise ModelError(
            f"{source.given}: its weights are quantised ({method}), and a package that unpacks them is missing: "
            f"pip install {method}"
        )
    return config


def read_config_alone(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """Read the config of a model that is not a GGUF file; its weights may be missing, or of any kind.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    keywords = source.keywords | {"trust_remote_code": trust_remote_code}
    return refuse_clearly(source, lambda: AutoConfig.from_pretrained(**keywords))


def stored_dtype(source: ModelSource, *, trust_remote_code: bool) -> torch.dtype:
    """Return the dtype that a model's config gives for its weights; float32 if it gives none.

    The weights of a GGUF file are unpacked to float32.

    Raises:
        ModelError: As `read_config`.
    """
    if source.is_gguf:
        return torch.float32
    return dtype_in(read_config(source, trust_remote_code=trust_remote_code))


def dtype_in(config: Any) -> torch.dtype:
    """Return the dtype that a config gives for the weights; float32 if it gives none."""
    return getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32


def read_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | None = None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load one causal LM in evaluation mode.

    Args:
        source: Model to load.
        dtype: Dtype of its weights.
        device: Device of its weights.
        device_map: Spread the weights over several devices instead; see `spread.memory_limits`.
        trust_remote_code: Run code that comes with the model.

    Returns:
        The model with all weights in `dtype` (but those that transformers keeps in float32), and remarks: what
        had to be done to its weights.

    Raises:
        ModelError: If a weight is missing, left over or of another shape, or the weights cannot be unpacked.
    """
    keywords = source.keywords | {"trust_remote_code": trust_remote_code, "use_safetensors": True, "dtype": dtype}
    keywords |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "key_mapping": dict(UNWRAPPED)}
    method = None
    if source.is_gguf:
        keywords["quantization_config"] = GgufConfig(dequantize=True)
    else:
        config = read_config(source, trust_remote_code=trust_remote_code)
        if source.path is not None:
            check_names(source, source.path, _own_name)
        method = _quantised_by(config)
        if method in UNPACKED_ON_LOADING:
            config.quantization_config = {**config.quantization_config, "dequantize": True}
        keywords["config"] = config
    with ExitStack() as until_loaded:
        if device_map is not None:
            folder = until_loaded.enter_context(converted_weights())
            keywords |= _spread(source, method, device_map, folder)
        with _without_gguf_bar():
            model, report = refuse_clearly(source, lambda: AutoModelForCausalLM.from_pretrained(**keywords))
        remarks = [*_check_report(source, model, report)]
        if source.path is not None and source.is_gguf:
            check_gguf(source.path, model)
        if method is not None:
            remarks.append(f"its weights are stored as {method} and were unpacked to {dtype_name(dtype)}")
        refuse_clearly(source, lambda: _unpack(model, method, dtype))
        if device_map is None:
            model.to(device=device)
        else:
            refuse_clearly(source, lambda: settle(model))
            weakref.finalize(model, until_loaded.pop_all().close)  # the folder goes with the model
    return model, tuple(remarks)


def _spread(source: ModelSource, method: str | None, device_map: str, folder: str) -> dict[str, Any]:
    """Return the keywords with which transformers spreads a model; the folder is for converted weights.

    Raises:
        ModelError: If its weights are unpacked in memory, all at once.
        ConfigError: If the device map is none.
    """
    if source.is_gguf or method in UNPACKED_AFTERWARDS:
        raise ModelError(
            f"{source.given}: its weights ({'GGUF' if source.is_gguf else method}) are unpacked in the memory of one "
            "device, all at once: leave out `device_map`, or save the unpacked model once (load_model(...), then "
            "save_pretrained) and give that folder"
        )
    # Offloaded weights are read later, perhaps from another working directory.
    here = {} if source.path is None else {"pretrained_model_name_or_path": str(source.path.absolute())}
    return here | spread_keywords(device_map, folder)


@contextmanager
def _without_gguf_bar() -> Iterator[None]:
    """Keep transformers from drawing a progress bar while it unpacks a GGUF file: the bar has no switch."""
    tools: Any = modeling_gguf_pytorch_utils
    bar, tools.tqdm = tools.tqdm, lambda tensors, **_: tensors
    try:
        yield
    finally:
        tools.tqdm = bar


def _own_name(name: str) -> str:
    for pattern, replacement in UNWRAPPED.items():
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _quantised_by(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if found is None:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method", "config.json does not say how"))


def check_unpackable(source: ModelSource, config: Any) -> None:
    """Refuse a config whose weights are quantised in a way that is not unpacked.

    Raises:
        ModelError: If they are.
    """
    method, known = _quantised_by(config), (*UNPACKED_ON_LOADING, *UNPACKED_AFTERWARDS)
    if method is not None and method not in known:
        raise ModelError(
            f"{source.given}: its weights are quantised ({method}), and are unpacked here only if quantised by "
            f"{', '.join(known)} or in a GGUF file; load it where {method} runs, save it unpacked (model.dequantize() "
            "where there is one) as safetensors, or audit the model it was quantised from"
        )


def _unpack(model: Any, method: str | None, dtype: torch.dtype) -> None:
    """Unpack weights that are still quantised, and remove the quantisation from the config."""
    if method in UNPACKED_AFTERWARDS:
        model.dequantize(dtype)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    packed = [name for name, weight in model.named_parameters() if not weight.is_floating_point()]
    if packed:
        raise ModelError(f"{model.name_or_path}: {packed[0]} is still packed after loading; save the model unpacked")


def _check_report(source: ModelSource, model: Any, report: Mapping[str, Any]) -> list[str]:
    """Check the loading report of transformers, and return remarks.

    Raises:
        ModelError: If weights are missing, left over or of another shape; the message names the first and their number.
    """
    left_over = sorted(name for name in report["unexpected_keys"] if not HARMLESS.search(name))
    beside = [name for name in left_over if _is_beside(model, name)]
    foreign = [name for name in left_over if name not in beside]
    if missing := sorted(report["missing_keys"]):
        first = missing[0] + (f"; they hold {foreign[0]} instead, which the model does not have" if foreign else "")
        raise ModelError(
            f"{source.given}: {_count(missing)} of the model {_are(missing)} not in its files, first {first}; "
            "transformers would use random numbers there: save the whole model again with save_pretrained"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{source.given}: {name} has the shape {_shape(stored)} in its files and {_shape(expected)} by its "
            f"config.json ({_count(mismatched)} in all); the two are not of one model: save both with save_pretrained"
        )
    if foreign:
        raise ModelError(
            f"{source.given}: its files hold {_count(foreign)} that the model has no place for, first {foreign[0]}, so "
            "what runs here is not what was trained; check that config.json belongs to these weights"
        )
    remarks = [f"left out, because they are not part of the language model: {_names(beside)}"] if beside else []
    if _unwrap_names(model):
        remarks.append("names of weights were stripped of what training wrapped around the model, such as _orig_mod")
    return remarks


def _is_beside(model: Any, name: str) -> bool:
    """Say whether a weight belongs to a module beside the language model, such as a value head."""
    first, inside, _ = name.partition(".")
    tops = {child for part in (model, model.base_model) for child, _ in part.named_children()}
    return bool(inside) and first not in tops


def _unwrap_names(model: Any) -> bool:
    """Say whether names of wrappers were found, and remove them: the model would be saved with them."""
    # transformers has no other place that says which renamings were used, or that keeps them from being undone.
    used = model._weight_conversions or []
    ours = [rule for rule in used if any(pattern in UNWRAPPED for pattern in getattr(rule, "source_patterns", ()))]
    if ours:
        model._weight_conversions = [rule for rule in used if rule not in ours] or None
    return bool(ours)


def _count(names: list[Any]) -> str:
    return f"{len(names)} weight{'s' if len(names) > 1 else ''}"


def _are(names: list[Any]) -> str:
    return "are" if len(names) > 1 else "is"


def _names(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, tuple(shape))) or "()"
