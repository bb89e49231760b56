"""What identifies a model: a hash of its parameters."""

import hashlib

import torch
from torch import nn


def parameters_sha256(model: nn.Module) -> str:
    """Hash a model's parameters and their names: the same for a folder, a GGUF file and a model in memory."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy())
    return digest.hexdigest()
