"""What identifies a model: a hash of its parameters."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def parameters_sha256(model: nn.Module) -> str:
    """Hash a model's parameters and their names: the same for a folder, a GGUF file and a model in memory."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tensors.items()):
        digest.update(name.encode())
        flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
