"""Chooses the layers that get a low-rank adapter, for every architecture."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ltmia.finetuning.card import base_name

MAMBA_FAMILY = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
READ_WITHOUT_A_CALL = ("out_proj", "dt_proj", "conv1d")
"""Layers of the Mamba family whose weights the mixer reads directly: an adapter would have no effect, and PEFT refuses
some."""
NOT_QUITE_LINEAR = ("router", "o_a_proj")
"""Linear layers with unusual outputs, which cannot have an adapter: routers, which return more than one tensor, and
DeepSeek V4's grouped projection, which returns another shape."""


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> PeftModel:
    """Add new adapters to all linear layers of a model, except the output head and layers where they cannot work."""
    unsuitable = NOT_QUITE_LINEAR + (READ_WITHOUT_A_CALL if model.config.model_type in MAMBA_FAMILY else ())
    present = {place.rpartition(".")[2] for place, _ in model.named_modules()}
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        exclude_modules=[name for name in unsuitable if name in present] or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(model, lora)
    name, revision = base_name(model)
    tuned.peft_config["default"].base_model_name_or_path = name
    tuned.peft_config["default"].revision = revision
    return tuned
