"""Changes one input of an audit between two runs into the same folder. Used by `torture.py`.

The final results must be those of the last inputs: no score of earlier inputs may be left in them. Sometimes nothing
changes, so resuming is tested too.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ltmia.data.embedded import demo_base_path

RANK, ALPHA = 2, 4
CHECKPOINTS = {"early": 0.3, "late": 0.7}
"""Checkpoints that an audit may be given, and the share of the update that each holds."""
FRESH = "-fresh"


def lay_out(work: Path, out: Path) -> None:
    """Make a base, an adapter of it and two files of texts for the audit in `out`; `work` holds texts to copy."""
    folder = inputs_of(out)
    shutil.copytree(demo_base_path(), folder / "base")
    _write_adapter(folder, seed=0)
    for name in ("members", "nonmembers"):
        shutil.copy(work / f"{name}.jsonl", folder)
    options = {"max_length": 24, "dtype": "float32", "thorough": False, "checkpoints": []}
    (folder / "options.json").write_text(json.dumps(options), "utf-8")


def inputs_of(out: Path) -> Path:
    """Return the folder of the inputs, beside that of the results."""
    return out.with_name(f"{out.name.removesuffix(FRESH)}-inputs")


def fresh_folder(out: Path) -> Path:
    """Name a second folder of results of the same inputs."""
    return out.with_name(out.name + FRESH)


def arguments(out: Path) -> list[str]:
    """Return the arguments of an audit with the classifier and an attack that passes over the texts once more."""
    folder = inputs_of(out)
    options = json.loads((folder / "options.json").read_text("utf-8"))
    models = [str(folder / "adapter"), "--base", str(folder / "base"), "--dtype", options["dtype"]]
    texts = ["--members", str(folder / "members.jsonl"), "--nonmembers", str(folder / "nonmembers.jsonl")]
    what = ["--attacks", "ltmia,difference,lowercase", "--batch-size", "2", "--max-length", str(options["max_length"])]
    what += ["--thorough"] if options["thorough"] else []
    for checkpoint in options["checkpoints"]:
        what += ["--checkpoints", str(folder / checkpoint)]
    return ["audit", *models, *what, *texts, "-o", str(out), "--overwrite", "--quiet"]


def change(out: Path, chance: random.Random) -> str:
    """Change one thing of the inputs of `out`, or nothing, every third time; return what."""
    if chance.random() < 1 / 3:
        return "nothing"
    name = chance.choice(sorted(CHANGES))
    CHANGES[name](inputs_of(out), chance)
    return name


def _write_adapter(folder: Path, seed: int) -> None:
    """Write a LoRA adapter with random weights, and two checkpoints on the way to it."""
    config = json.loads((folder / "base" / "config.json").read_text("utf-8"))
    rng, width = np.random.default_rng(seed), config["n_embd"]
    weights = {}
    for layer in range(config["n_layer"]):
        name = f"base_model.model.transformer.h.{layer}.attn.c_proj"
        weights[f"{name}.lora_A.weight"] = rng.normal(0, 0.2, (RANK, width)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = rng.normal(0, 0.2, (width, RANK)).astype(np.float32)
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "fan_in_fan_out": True}
    adapter |= {"target_modules": ["attn.c_proj"], "base_model_name_or_path": "base", "bias": "none"}
    for name, share in CHECKPOINTS.items() | {("adapter", 1.0)}:
        (folder / name).mkdir(exist_ok=True)
        on_the_way = {key: weight * (share if "lora_B" in key else 1) for key, weight in weights.items()}
        save_file(on_the_way, folder / name / "adapter_model.safetensors", {"format": "pt"})
        (folder / name / "adapter_config.json").write_text(json.dumps(adapter), "utf-8")


def _rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def _another_text(folder: Path, chance: random.Random) -> None:
    file = folder / "members.jsonl"
    lines = file.read_text("utf-8").splitlines()
    row = chance.randrange(len(lines))
    words = (found := json.loads(lines[row]))["text"].split()
    chance.shuffle(words)
    lines[row] = json.dumps(found | {"text": " ".join(words)})
    file.write_text("\n".join(lines), "utf-8")


def _another_normaliser(folder: Path, chance: random.Random) -> None:
    kind = chance.choice(["Lowercase", "NFKD", "StripAccents"])
    _rewrite(folder / "base" / "tokenizer.json", normalizer={"type": kind})


def _more_of_the_weights(folder: Path, _chance: random.Random) -> None:
    thorough = json.loads((folder / "options.json").read_text("utf-8"))["thorough"]
    _rewrite(folder / "options.json", thorough=not thorough)


def _other_checkpoints(folder: Path, chance: random.Random) -> None:
    given = [name for name in CHECKPOINTS if chance.random() < 2 / 3]
    _rewrite(folder / "options.json", checkpoints=given)


def _a_checkpoints_weight(folder: Path, chance: random.Random) -> None:
    """Move all weights of a checkpoint a little, so that it stays on the way."""
    file = folder / chance.choice(sorted(CHECKPOINTS)) / "adapter_model.safetensors"
    share = np.float32(chance.uniform(0.9, 1.1))
    save_file({key: weight * share for key, weight in load_file(file).items()}, file, {"format": "pt"})


def _another_dtype(folder: Path, _chance: random.Random) -> None:
    dtype = json.loads((folder / "options.json").read_text("utf-8"))["dtype"]
    _rewrite(folder / "options.json", dtype="bfloat16" if dtype == "float32" else "float32")


CHANGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "lora_alpha": lambda folder, chance: _rewrite(
        folder / "adapter" / "adapter_config.json", lora_alpha=chance.uniform(1, 9)
    ),
    "weights": lambda folder, chance: _write_adapter(folder, chance.randrange(1, 2**31)),
    "activation": lambda folder, chance: _rewrite(
        folder / "base" / "config.json", activation_function=chance.choice(["relu", "silu", "gelu", "gelu_new"])
    ),
    "norm epsilon": lambda folder, chance: _rewrite(
        folder / "base" / "config.json", layer_norm_epsilon=chance.uniform(1e-6, 0.5)
    ),
    "max_length": lambda folder, chance: _rewrite(folder / "options.json", max_length=chance.randint(8, 32)),
    "dtype": _another_dtype,
    "thorough": _more_of_the_weights,
    "checkpoints": _other_checkpoints,
    "a checkpoint's weights": _a_checkpoints_weight,
    "a text": _another_text,
    "normaliser": _another_normaliser,
}
