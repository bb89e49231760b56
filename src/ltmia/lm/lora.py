"""Low-rank adapters on every architecture: which layers get one."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MAMBA_FAMILY = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> PeftModel:
    """Wrap a model in fresh adapters of all its linear layers but the output head.

    The layers whose weights the Mamba family's mixer reads without calling them are left out: an
    adapter has no effect there, and PEFT refuses some of them.
    """
    reads_weights = model.config.model_type in MAMBA_FAMILY
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        exclude_modules=["out_proj", "dt_proj", "conv1d"] if reads_weights else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(model, lora)
    place = Path(model.name_or_path or "")
    if model.name_or_path and place.is_dir():
        # A relative path would lose its meaning in another working directory.
        tuned.peft_config["default"].base_model_name_or_path = str(place.resolve())
    return tuned
