"""Scores depend neither on the batch a text is in nor on the order of the texts."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from ltmia.attacks.selection import fast_attacks, select_attacks
from ltmia.attacks.table import EXCESS, LEARNED
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.finetuning.perturbed import move_weights
from ltmia.models.loading import LoadOptions, load_model, load_pair
from ltmia.models.pair import Pair
from ltmia.scoring.in_memory import score_texts

TEXTS = [text[: 40 * (i % 9 + 1)] for i, text in enumerate(demo_texts().texts[:66])]
"""Lengths mixed, so that batches hold padding."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Return the embedded base, and the same with every weight moved a little."""
    base = load_pair(str(demo_base_path()), str(demo_base_path()), dtype="float32", device="cpu")
    moved = load_model(str(demo_base_path()), LoadOptions(dtype="float32", device="cpu"))[0]
    move_weights(moved, 0.12)
    return Pair(target=moved, reference=base.reference, tokenizer=base.tokenizer)


def test_every_fast_attack_agrees_between_batch_sizes_and_orders(pair: Pair) -> None:
    expected = score_texts(pair, TEXTS, attacks="fast", batch_size=1)
    assert set(fast_attacks(select_attacks("fast"))) <= set(expected)
    for seed, batch_size in enumerate((7, 64, 64)):
        order = np.random.default_rng(seed).permutation(len(TEXTS))
        found = score_texts(pair, [TEXTS[i] for i in order], attacks="fast", batch_size=batch_size)
        for name, values in found.items():
            scored = ~np.isnan(expected[name])
            # SURP has no score where the target is never sure of anything.
            assert scored.sum() > (0 if name == "surp" else len(TEXTS) / 2), name
            if name in (EXCESS, LEARNED):
                # Trees learned from all texts turn rounding noise into other splits now and then; the order stays.
                assert spearmanr(values, expected[name][order], nan_policy="omit").statistic > 0.99, name
                assert np.nanmedian(np.abs(values - expected[name][order])) < 0.01, name
            else:
                np.testing.assert_allclose(values, expected[name][order], atol=1e-4, rtol=0, err_msg=name)
