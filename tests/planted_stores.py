"""Labelled stores made without a model: small, and with a membership signal of known strength."""

from pathlib import Path

import numpy as np
import torch

from ltmia.expectation.fit import expect_texts
from ltmia.expectation.model import fold_of
from ltmia.features.columns import EXPECTATIONS
from ltmia.features.journal import StoredText
from ltmia.features.statistics import token_statistics
from ltmia.features.store import StoreWriter
from ltmia.models.tokens import EncodedText

K, VOCAB = 5, 60
SCORES = ("difference", "ratio", "ez_mia", "wbc", "min_k_plus_plus", "loss")
"""What the pass over a text gives."""


def make_store(
    folder: Path,
    *,
    gain: float,
    seed: int,
    n: int = 120,
    k: int = K,
    lengths: tuple[int, int] = (8, 30),
    trained: int | None = None,
) -> Path:
    """A labelled store whose members' true tokens gained log-probability: membership by construction.

    Texts have from the first to less than the second of `lengths` positions; `trained` of each gained.
    """
    rng = np.random.default_rng(seed)
    writer = StoreWriter(folder, fingerprint=str(seed), k=k, vocab_size=VOCAB)
    labels = [i % 2 for i in range(n)]
    encoded = []
    for row, label in enumerate(labels):
        length = int(rng.integers(*lengths))
        b = rng.normal(0, 2, (length, VOCAB)).astype(np.float32)
        a = b + rng.normal(0, 0.5, b.shape).astype(np.float32)
        ids = rng.integers(0, VOCAB, length)
        a[np.arange(length)[:trained], ids[:trained]] += gain * label
        tokens = token_statistics(torch.tensor(a), torch.tensor(b), torch.tensor(ids), k)
        scores = dict.fromkeys(SCORES, 0.5) | {"difference": float(tokens.log_ratio.mean())}
        writer.append(tokens, [StoredText(row=row, n_tokens=length, scores=scores)])
        encoded.append(EncodedText(ids=np.concatenate([[0], ids])))
    folds = [fold_of(str(i)) for i in range(n)]
    expected = {kind: expect_texts(writer.statistics, encoded, folds, kind) for kind in EXPECTATIONS}
    columns = {
        "id": [str(i) for i in range(n)],
        "truncated": [False] * n,
        "label": labels,
        "score_excess": expected["full"].excess.tolist(),
    }
    writer.finish(columns, {}, {kind: found.expectation for kind, found in expected.items()})
    return folder
