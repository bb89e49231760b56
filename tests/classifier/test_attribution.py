"""Attribution of the logit to tokens: exact where the answer is known, whatever the network."""

import numpy as np
import torch
from torch import Tensor, nn

from ltmia.classifier.attribution import integrated_gradients
from ltmia.classifier.combinations import n_summary
from ltmia.classifier.membership import shipped_classifier
from ltmia.features.columns import feature_columns
from ltmia.features.per_token import FeatureBatch

START = torch.tensor([0.5, -1.0])


class Sum(nn.Module):
    """A network whose contributions are known: linear, or a square, of each token's features."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, values: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        return ((values * torch.tensor([2.0, 3.0])) ** self.power * mask[..., None]).sum((1, 2)) + summary.sum(1)


def batch(seed: int, n_features: int, version: str = "logratio") -> FeatureBatch:
    rng = np.random.default_rng(seed)
    mask = np.array([[True] * 6, [True] * 3 + [False] * 3, [False] * 6])
    values = rng.normal(size=(3, 6, n_features)).astype(np.float32) * mask[..., None]
    summary = rng.normal(size=(3, n_summary(version))).astype(np.float32)
    return FeatureBatch(values=values, mask=mask, version=version, summary=summary)


def test_a_linear_network_gives_weight_times_distance_from_the_start() -> None:
    features = batch(0, 2)
    expected = ((features.values - START.numpy()) @ np.array([2.0, 3.0])) * features.mask
    np.testing.assert_allclose(integrated_gradients(Sum(1), features, START), expected, rtol=1e-5, atol=1e-5)


def test_contributions_add_up_to_the_difference_in_logits() -> None:
    features = batch(1, 2)
    network, mask = Sum(2), torch.from_numpy(features.mask)
    summary = torch.zeros(3, n_summary("logratio"))
    ends = [network(v, mask, summary) for v in (torch.from_numpy(features.values), START.expand(3, 6, 2))]
    # The midpoint rule is exact for squares.
    found = integrated_gradients(network, features, START).sum(1)
    np.testing.assert_allclose(found, (ends[0] - ends[1]).numpy(), rtol=1e-4, atol=1e-4)


def test_the_shipped_classifier_attributes_to_scored_tokens_only_and_padding_does_not_matter() -> None:
    classifier = shipped_classifier()
    version = classifier.feature_version
    features = batch(2, len(feature_columns(version, classifier.k)), version)
    found = classifier.attribute(features)
    assert found.shape == features.mask.shape
    assert (found[~features.mask] == 0).all()
    assert (found[0] != 0).all()
    row = FeatureBatch(
        values=features.values[1:2, :3], mask=features.mask[1:2, :3], version=version, summary=features.summary[1:2]
    )
    np.testing.assert_allclose(classifier.attribute(row)[0], found[1, :3], atol=1e-4)
