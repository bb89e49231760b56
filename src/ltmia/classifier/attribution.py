"""Attributes the classifier's logit to tokens by integrated gradients.

The network must map `values`, `mask` and `summary` to one logit per text.
"""

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from ltmia.classifier.combinations import tensors
from ltmia.features.per_token import FeatureBatch

STEPS = 8
"""Points of the path where the gradient is computed."""


def integrated_gradients(
    network: nn.Module, features: FeatureBatch, start: Float32[Tensor, " feat"]
) -> Float32[np.ndarray, "batch seq"]:
    """Divide the logit among tokens, along the straight path from an average token to each real one.

    Sundararajan et al. 2017, arXiv 1703.01365, by the midpoint rule. Scores of hand-made attacks stay constant: only
    the tokens' contribution through the network is divided.

    Args:
        network: Network of the classifier, in evaluation mode.
        features: Features of some texts.
        start: Features of the average token, the start of the path.

    Returns:
        The contribution of each token to the logit; 0 at positions that are not scored.
    """
    values, mask, summary = tensors(features)
    weights = mask[..., None].to(values.dtype)
    path = (values - start) * weights
    total = torch.zeros_like(values)
    for step in range(STEPS):
        # Padding stays zero along the path, as the network expects it.
        point = (start * weights + (step + 0.5) / STEPS * path).requires_grad_()
        (gradient,) = torch.autograd.grad(network(point, mask, summary).sum(), point)
        total += gradient / STEPS
    return (total * path).sum(-1).numpy()
