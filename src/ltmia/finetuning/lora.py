"""Low-rank adapters on every architecture: which layers get one."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ltmia.finetuning.card import base_name

MAMBA_FAMILY = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
READ_WITHOUT_A_CALL = ("out_proj", "dt_proj", "conv1d")
"""Layers whose weights the Mamba family's mixer reads: an adapter has no effect there, and PEFT refuses some."""
NOT_QUITE_LINEAR = ("router", "o_a_proj")
"""Layers of a linear kind that answer otherwise, so that no adapter can be put on them: routers, which choose the
experts of a token, with more than one tensor; DeepSeek V4's grouped projection with another shape."""


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> PeftModel:
    """Wrap a model in fresh adapters of all its linear layers but the output head and where they cannot work."""
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
