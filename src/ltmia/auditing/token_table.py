"""Columns of `tokens.parquet`: contributions of each token, for the records with the highest scores."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.windows import WindowLogits, windows_of
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts, without_surrogates
from ltmia.scoring.stored_scores import StoredTexts

MOST_TEXTS, MOST_POSITIONS = 300, 30_000
"""Largest numbers of records and of token positions kept; records with the highest scores come first."""
ATTRIBUTED_AT_ONCE = 64
"""Texts whose features are in memory at a time."""


def token_columns(
    scored: StoredTexts,
    judge: Float64[np.ndarray, " texts"],
    *,
    classifier: MembershipClassifier | None,
    revealed: tuple[Pair, Texts, int] | None = None,
) -> dict[str, Any]:
    """Compute the columns of `tokens.parquet`; see `ltmia.evaluation.files.write_tokens`.

    Args:
        scored: Scored texts.
        judge: Scores that decide which records are kept.
        classifier: The learned attack, if it took part.
        revealed: The pair, the texts and the most tokens read of each; needed to write the tokens themselves. None
            leaves the tokens out.
    """
    rows = _kept_rows(judge, scored.n_tokens)
    found = scored.store.statistics(rows)
    columns: dict[str, Any] = {
        "row": pa.array(rows, pa.int64()),
        "difference": pa.array([tokens.log_ratio for tokens in found], pa.list_(pa.float32())),
    }
    if classifier is not None and scored.windows is not None:
        attributions = _attributions(classifier, scored.windows, scored, rows)
        columns["attribution"] = pa.array(attributions, pa.list_(pa.float32()))
    if revealed is not None:
        pair, texts, max_length = revealed
        columns["token"] = pa.array(_tokens(pair, texts.take(rows), scored.n_tokens[rows], max_length))
    return columns


def _kept_rows(judge: Float64[np.ndarray, " texts"], n_tokens: np.ndarray) -> np.ndarray:
    """Return the rows with the highest scores, highest first."""
    order = np.argsort(-judge, kind="stable")[: int((~np.isnan(judge)).sum())][:MOST_TEXTS]
    kept = order[np.cumsum(n_tokens[order]) <= MOST_POSITIONS]
    return np.asarray(kept, np.int64)


def _attributions(
    classifier: MembershipClassifier, logits: WindowLogits, scored: StoredTexts, rows: np.ndarray
) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for start in range(0, len(rows), ATTRIBUTED_AT_ONCE):
        part = rows[start : start + ATTRIBUTED_AT_ONCE]
        windows = windows_of(classifier, scored.store, part)
        tokens = iter(classifier.attribute(windows.features))
        for row, n_windows in zip(part, windows.counts, strict=True):
            weighted = [next(tokens)[: classifier.window] * share for share in logits.shares[row, :n_windows]]
            found.append(np.concatenate(weighted)[: scored.n_tokens[row]])
    return found


def _tokens(pair: Pair, texts: Texts, counts: np.ndarray, max_length: int) -> list[list[str]]:
    encoded = encode_texts(
        pair.tokenizer, texts.texts, max_length=max_length, vocab_size=pair.vocab_size, starts=texts.starts
    )
    return [
        [without_surrogates(str(pair.tokenizer.decode([int(i)]))) for i in text.scored_ids[:n]]
        for text, n in zip(encoded, counts, strict=True)
    ]
