"""Loading a pair: hub id, folder, PEFT adapter, GGUF file. Safetensors only, remote code only when asked for.

Every refusal is a `ModelError` that names what was found and what to do. Embeddings are never
resized.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ltmia.errors import ModelError
from ltmia.lm.pair import ModelOrigin, Pair
from ltmia.runtime import pick_device, pick_dtype

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


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
) -> Pair:
    """Load a fine-tuned target and its pretrained reference.

    Args:
        target: Hub id ("org/name" or "org/name@revision"), model folder, PEFT adapter folder, GGUF file, or a module.
        base: The same for the reference; "auto" or None finds it in the adapter's config or the model card.
        tokenizer: Only needed when both models are modules.
        dtype: "auto" keeps bfloat16 checkpoints in bfloat16 where the hardware computes in it, else float32.
        device: "auto" takes an accelerator if there is one.
        trust_remote_code: Allow code that comes with the models to run.

    Raises:
        ModelError: If a model is missing, unsafe or unusable, or the two do not share tokenizer
            and vocabulary.
    """
    options = LoadOptions(dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if isinstance(target, nn.Module):
        return _pair_in_memory(target, base, tokenizer)
    if isinstance(base, nn.Module):
        raise ModelError("the target is a path but the base a module: give both in the same form")
    source = str(target)
    named = None if base in (None, "auto") else str(base)
    if (Path(source) / "adapter_config.json").is_file():
        return _load_adapter(source, named, tokenizer, options)
    named = named or find_base(source)
    model, origin = load_model(source, options)
    reference, reference_origin = load_model(named, options)
    shared = tokenizer or shared_tokenizer(source, named, options)
    return Pair(
        target=model,
        reference=reference,
        tokenizer=shared,
        target_origin=origin,
        reference_origin=reference_origin,
    )


def find_base(source: str) -> str:
    """Return the base that a full fine-tune names in its model card.

    Raises:
        ModelError: If it names none.
    """
    card = Path(source) / "README.md"
    if card.is_file():
        named = ModelCard.load(card).data.to_dict().get("base_model")
        if isinstance(named, list):
            named = named[0] if len(named) == 1 else None
        if named:
            return str(named)
    raise ModelError(
        f"{source}: neither adapter_config.json nor the model card says which model it was "
        "fine-tuned from; name it with --base"
    )


def load_model(source: str, options: LoadOptions) -> tuple[PreTrainedModel, ModelOrigin]:
    """Load one causal LM in evaluation mode.

    Raises:
        ModelError: If there is no such model, or only pickled weights.
    """
    name, revision = _split_revision(source)
    place = _local_place(name)
    if place and place.is_dir():
        _check_folder(place)
    keywords: dict[str, Any] = {
        "trust_remote_code": options.trust_remote_code,
        "use_safetensors": True,
        "revision": revision,
    }
    if place and place.suffix == ".gguf":
        # GGUF weights are unpacked to float32 first; a quantised file has no dtype of its own to
        # keep.
        keywords |= {"gguf_file": place.name, "dtype": torch.float32}
        name = str(place.parent)
    else:
        keywords["dtype"] = "auto"
    model = _refuse_clearly(source, lambda: AutoModelForCausalLM.from_pretrained(name, **keywords))
    device = pick_device(options.device)
    model.to(device=device, dtype=pick_dtype(options.dtype, model.dtype, device))
    origin = ModelOrigin(
        source=source,
        revision=revision or getattr(model.config, "_commit_hash", None),
        trust_remote_code=options.trust_remote_code,
    )
    return model, origin


def load_tokenizer(source: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model."""
    name, revision = _split_revision(source)
    place = _local_place(name)
    keywords: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": options.trust_remote_code,
    }
    if place and place.suffix == ".gguf":
        keywords["gguf_file"] = place.name
        name = str(place.parent)
    return _refuse_clearly(source, lambda: AutoTokenizer.from_pretrained(name, **keywords))


def shared_tokenizer(target: str, base: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Return the target's tokenizer after checking that the base's gives every id the same token.

    Tokens that only the target has (added while fine-tuning) are fine: they lie outside the shared
    ids.

    Raises:
        ModelError: If one id means two different tokens.
    """
    if not has_tokenizer(target):
        return load_tokenizer(base, options)
    ours = load_tokenizer(target, options)
    if has_tokenizer(base):
        check_same_tokens(ours, load_tokenizer(base, options))
    return ours


def check_same_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> None:
    """Compare two tokenizers id by id.

    Raises:
        ModelError: If an id that both know stands for different tokens.
    """
    by_id = {index: token for token, index in theirs.get_vocab().items()}
    for token, index in ours.get_vocab().items():
        other = by_id.get(index)
        if other is not None and other != token:
            raise ModelError(
                f"target and base have different tokenizers: id {index} is {token!r} for the target and {other!r} "
                "for the base; their scores cannot be compared. Is this really the base it was fine-tuned from?"
            )


def has_tokenizer(source: str) -> bool:
    """Say whether a tokenizer comes with a model; of a hub id it is taken for granted."""
    place = _local_place(_split_revision(source)[0])
    if place is None or place.suffix == ".gguf":
        return True
    return any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _load_adapter(
    source: str, base: str | None, tokenizer: PreTrainedTokenizerBase | None, options: LoadOptions
) -> Pair:
    folder = Path(source)
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{source}: no adapter_model.safetensors; pickled adapters are not loaded, save it again as safetensors"
        )
    named = base or _json_file(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{source}/adapter_config.json names no base model; name it with --base")
    model, origin = load_model(str(named), options)
    adapted = _refuse_clearly(source, lambda: PeftModel.from_pretrained(model, source))
    return Pair(
        target=adapted,
        tokenizer=tokenizer or shared_tokenizer(source, str(named), options),
        target_origin=ModelOrigin(source=source, trust_remote_code=options.trust_remote_code),
        reference_origin=origin,
    )


def _pair_in_memory(
    target: nn.Module,
    base: str | Path | nn.Module | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Pair:
    if tokenizer is None:
        raise ModelError("models in memory need their tokenizer: load_pair(..., tokenizer=...)")
    if base is not None and not isinstance(base, nn.Module):
        raise ModelError("the target is a module but the base a path: give both in the same form")
    return Pair(target=target, reference=base, tokenizer=tokenizer)


def _split_revision(source: str) -> tuple[str, str | None]:
    if Path(source).exists() or "@" not in source:
        return source, None
    name, _, revision = source.rpartition("@")
    return name, revision


def _local_place(name: str) -> Path | None:
    """Return the path of a local model, None for a hub id.

    Raises:
        ModelError: If the name is plainly a path, and nothing usable is there.
    """
    place = Path(name).expanduser()
    if place.is_file() and place.suffix == ".gguf":
        return place
    if place.is_dir():
        return place
    looks_local = place.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if place.exists() or looks_local or place.suffix == ".gguf":
        raise ModelError(
            f"{name}: no model there; expected a folder with config.json (or adapter_config.json), a .gguf file, or a "
            "hub id like org/name"
        )
    return None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json (nor adapter_config.json), so not a model folder; files found: "
            f"{', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'none'}"
        )
    names = [path.name for path in folder.iterdir()]
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        found = f"only {', '.join(pickled)}, which could run code when loaded" if pickled else "none"
        raise ModelError(f"{folder}: safetensors weights expected, found {found}")


def _refuse_clearly(source: str, load: Callable[[], Any]) -> Any:
    """Turn what the libraries raise on a model that cannot be had into one message."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(f"{source}: cannot be loaded: {type(error).__name__}: {first_line}") from error


def _json_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object expected, found {type(content).__name__}")
    return content
