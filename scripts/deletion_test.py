"""Test which attribution finds the tokens that matter: python scripts/deletion_test.py STORE [STORE ...].

The script takes the texts with the highest logits. For each attribution it hides from the classifier the tenth of the
tokens that the attribution ranks highest. It prints how far the logit falls, and how far it falls for random tokens.
A larger fall is better.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from ltmia.classifier.attribution import integrated_gradients
from ltmia.classifier.combinations import gather_inputs
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.classifier.windows import classify_store
from ltmia.features.per_token import FeatureBatch
from ltmia.features.store import FeatureStore

TEXTS, SHARE = 200, 0.1


def main() -> None:
    """Print one line per store and attribution."""
    classifier = shipped_classifier()
    for folder in sys.argv[1:]:
        store = FeatureStore(Path(folder))
        rows = np.argsort(-np.nan_to_num(classify_store(classifier, store).pooled, nan=-np.inf))[:TEXTS]
        features = gather_inputs(store, np.sort(rows), classifier.feature_version)
        before = classifier.predict_logit(features)
        for name, weight in attributions(classifier, store, features, np.sort(rows)).items():
            falls = before - classifier.predict_logit(hide(features, weight))
            error = falls.std() / np.sqrt(len(falls))
            print(f"{folder} {name}: the logit falls by {falls.mean():.3f} +- {1.96 * error:.3f}")


def attributions(
    classifier: MembershipClassifier, store: FeatureStore, features: FeatureBatch, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a weight per token by each of the ways to compare."""
    network = classifier.network_
    seen: list[torch.Tensor] = []
    hook = network.attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    classifier.predict_logit(features)
    hook.remove()
    ratio, excess = np.zeros(features.mask.shape), np.zeros(features.mask.shape)
    statistics = store.statistics(rows)
    ratio[features.mask] = statistics.tokens.log_ratio
    assert statistics.expectation is not None, "the features were made from it"
    excess[features.mask] = statistics.expectation.excess(statistics.tokens.log_ratio)
    return {
        "random": np.random.default_rng(0).random(features.mask.shape),
        "log ratio": ratio,
        "excess": excess,
        "attention": torch.cat(seen).softmax(1).mean(-1).numpy(),
        "integrated gradients": integrated_gradients(network, features, classifier.domain_.average_token),
    }


def hide(features: FeatureBatch, weight: np.ndarray) -> FeatureBatch:
    """Mask the highest-weighted share of each text's tokens."""
    mask = features.mask.copy()
    ranked = np.argsort(-np.where(mask, weight, -np.inf), axis=1)
    for row, count in enumerate(np.ceil(SHARE * mask.sum(1)).astype(int)):
        mask[row, ranked[row, :count]] = False
    return FeatureBatch(values=features.values, mask=mask, version=features.version, summary=features.summary)


if __name__ == "__main__":
    main()
