"""Finds tensors that training should have changed and did not, such as an adapter whose gradients got lost."""

from collections.abc import Mapping

import torch

Fingerprints = Mapping[str, tuple[float, float]]
"""Sum and norm of each tensor that is trained; equal values have equal fingerprints."""


def fingerprints(model: torch.nn.Module) -> Fingerprints:
    """Return the fingerprint of each tensor that is trained."""
    trained = {name: value.detach().double() for name, value in model.named_parameters() if value.requires_grad}
    return {name: (float(value.sum()), float(value.norm())) for name, value in trained.items()}


def unmoved(before: Fingerprints, model: torch.nn.Module) -> list[str]:
    """Return the names of trained tensors that have the values they had before."""
    now = fingerprints(model)
    return [name for name, value in before.items() if now.get(name) == value]
