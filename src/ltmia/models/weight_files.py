"""Checks the weight files in a model's folder; for other files it says how to convert them."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import safe_open

from ltmia.errors import ModelError
from ltmia.models.sources import ADAPTER_CONFIG, ModelSource, read_json, refuse_clearly

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Folders that the Trainer of transformers makes while it trains, by step."""

FOREIGN = (
    (
        (".h5", ".msgpack"),
        "weights of TensorFlow or Flax, which transformers 5 no longer reads; with transformers 4, "
        "AutoModelForCausalLM.from_pretrained(FOLDER, from_tf=True), or from_flax=True, and save_pretrained write "
        "safetensors",
    ),
    (
        (".onnx",),
        "an ONNX export, from which weights are not read; give the folder it was exported from",
    ),
    (
        PICKLE_SUFFIXES,
        "which could run code when loaded; if you trust whoever made it, "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER) writes safetensors",
    ),
)
"""Weights of other formats by the end of their names, and how to convert them."""

ZERO = ("zero_to_fp32.py", "global_step")
FSDP = ("pytorch_model_fsdp", "__0_0.distcp")


def check_weights(source: ModelSource) -> None:
    """Refuse a folder without a model, or whose weights could run code when loaded.

    Raises:
        ModelError: If it is refused; the message names what was found and how to convert it.
    """
    if source.path is None or source.is_gguf:
        return
    names = sorted(path.name for path in source.path.iterdir())
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        _refuse_shards(source, source.path, names)
    if "config.json" not in names:
        raise ModelError(
            f"{source.given}: no config.json (nor {ADAPTER_CONFIG}), so not a model folder; "
            f"files found: {', '.join(names[:8]) or 'none'}{_guess(source.path)}"
        )
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        raise ModelError(f"{source.given}: safetensors weights expected, found {_found(names)}{_guess(source.path)}")
    for name in names:
        if name.endswith(".safetensors.index.json"):
            _check_index(source.path / name)


def check_names(source: ModelSource, folder: Path, own_name: Callable[[str], str]) -> None:
    """Refuse a folder that holds one weight twice, because transformers silently takes one of the two.

    Args:
        source: The model.
        folder: Folder of the model.
        own_name: Returns the model's own name for a weight.

    Raises:
        ModelError: If a weight is there twice; the message names both places.
    """
    found: dict[str, str] = {}
    for file in _read_files(source, folder):
        for name in refuse_clearly(source, partial(_names_in, folder / file)):
            place = f"{name} of {file}"
            if (other := found.setdefault(own_name(name), place)) != place:
                raise ModelError(
                    f"{source.given}: holds one weight twice, as {other} and as {place}, and which of the two was "
                    "trained is not known; save the whole model again with save_pretrained into an empty folder"
                )


def _read_files(source: ModelSource, folder: Path) -> list[str]:
    """Return the names of the files that transformers reads the weights from."""
    whole, index = (f"model{suffix}" for suffix in WEIGHT_SUFFIXES)
    shards = sorted(set(read_json(folder / index)["weight_map"].values())) if (folder / index).is_file() else []
    if not (folder / whole).is_file():
        return shards
    if other := [name for name in shards if name != whole]:
        raise ModelError(
            f"{source.given}: holds a model twice, as {whole} and as the parts that {index} names ({other[0]} and so "
            "on), and which of the two was trained is not known; remove one of them"
        )
    return [whole]


def _names_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as weights:
        return list(weights.keys())


def _found(names: list[str]) -> str:
    for suffixes, what in FOREIGN:
        files = [name for name in names if name.endswith(suffixes) and name != "training_args.bin"]
        if files:
            return f"only {', '.join(files[:3])}, {what}"
    return "none; save the model with save_pretrained"


def _refuse_shards(source: ModelSource, folder: Path, names: list[str]) -> None:
    """Name the program that joins the parts written by a distributed training."""
    if any(name.startswith(ZERO) for name in names):
        raise ModelError(
            f"{source.given}: holds the parts of a DeepSpeed ZeRO training, not a model; put them together with "
            f"`python {folder}/zero_to_fp32.py {folder} OUT --safe_serialization`, and copy config.json and the "
            "tokenizer into OUT"
        )
    shards = [name for name in names if name.startswith(FSDP) or name.endswith(".distcp")]
    if shards:
        parts = folder / shards[0] if (folder / shards[0]).is_dir() else folder
        raise ModelError(
            f"{source.given}: holds the parts of an FSDP training, not a model; put them together with "
            f"`accelerate merge-weights {parts} OUT`, and copy config.json and the tokenizer into OUT"
        )


def _guess(folder: Path) -> str:
    """Return a hint at the newest training checkpoint in this folder."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    return f"; did you mean {max(found)[1]}?" if found else ""


def _check_index(path: Path) -> None:
    """Refuse an index that sends the loader to files of another kind, which it would unpickle, or elsewhere."""
    shards = read_json(path).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else {"nothing"}
    other = sorted(str(n) for n in names if not str(n).endswith(".safetensors") or Path(str(n)).name != n)
    if other:
        raise ModelError(
            f"{path}: weight_map must name .safetensors files beside it only, found {', '.join(other[:3])}"
        )
