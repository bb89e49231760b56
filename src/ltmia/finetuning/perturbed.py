"""Makes targets without training, by small random changes to a base's weights.

For tests that do not depend on what a target has learned.
"""

from pathlib import Path

import torch
from torch import nn

from ltmia.finetuning.training import save_model
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer


def move_weights(model: nn.Module, by: float, *, seed: int = 0) -> None:
    """Add random noise to all weights, in place.

    Args:
        model: The base.
        by: Standard deviation of the noise, as a share of each tensor's mean absolute weight.
        seed: The same seed changes the same model in the same way.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.is_floating_point():
                noise = torch.randn(weights.shape, generator=generator)
                weights.add_((by * weights.abs().mean() * noise.to(weights.device)).to(weights.dtype))


def save_perturbed(base: Path, folder: Path, by: float = 0.3) -> None:
    """Save a copy of a base with changed weights, and its tokenizer."""
    options = LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(str(base), options)
    move_weights(model, by)
    save_model(model, load_tokenizer(str(base), options), folder)
