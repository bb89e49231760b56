"""Features and scores of a list of texts in memory, for notebooks and other programs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.multi_pass import Shots
from ltmia.attacks.selection import select_attacks
from ltmia.attacks.table import ATTACKS, CONTROL, EXCESS, LEARNED
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.classifier.windows import classify_store
from ltmia.errors import ConfigError
from ltmia.evaluation.validity import FEWEST_TO_LEARN_FROM
from ltmia.features.columns import DEFAULT_K, expectation_of, feature_columns, needs_expectation
from ltmia.features.per_token import FeatureBatch, per_token_features
from ltmia.features.store import FeatureStore
from ltmia.models.batching import BatchSize
from ltmia.models.pair import Pair
from ltmia.models.tokens import Encoding
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair, length_to_read
from ltmia.scoring.extraction import ExtractionConfig, extract_batches
from ltmia.scoring.multi_pass import MultiPassConfig, multi_pass_scores
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.store_filling import StorePlan, fill_store
from ltmia.scoring.stored_scores import extraction_config

log = logging.getLogger(__name__)


def extract_features(
    pair: Pair,
    texts: Sequence[str],
    *,
    version: str = "published",
    k: int = DEFAULT_K,
    max_length: int = 128,
    batch_size: BatchSize = 16,
) -> FeatureBatch:
    """Compute the per-token features of some texts.

    Args:
        pair: Target and reference.
        texts: Any strings.
        version: "published" also encodes texts as the paper does (no special tokens, EOS appended); "logratio";
            "excess" or "lite", which learn the expected log-ratios from all the texts.
        k: Top and bottom tokens per position.
        max_length: Tokens per text, and the length of the result.
        batch_size: Texts per forward pass, or "auto" for as many as fit; results do not depend on it.

    Returns:
        `.values` (n, max_length, feat) float32 and `.mask` (n, max_length) bool, rows as given; row t describes the
        prediction of token t + 1, so the last one is always zero and masked. An unscorable text is masked throughout.
    """
    encoding: Encoding = "published" if version == "published" else "default"
    kind = expectation_of(version)
    config = ExtractionConfig(
        k=k, max_length=max_length, batch_size=batch_size, encoding=encoding, expectations=(kind,)
    )
    if needs_expectation(version):
        with _stored(pair, texts, config) as store:
            return per_token_features(store.statistics(range(len(texts)), kind), version=version, seq_len=max_length)
    width = len(feature_columns(version, k))
    values = np.zeros((len(texts), max_length, width), np.float32)
    mask = np.zeros((len(texts), max_length), np.bool_)
    for batch in extract_batches(pair, texts, config):
        features = per_token_features(batch.statistics, version=version, seq_len=max_length)
        values[batch.rows], mask[batch.rows] = features.values, features.mask
    return FeatureBatch(values=values, mask=mask, version=version)


@contextmanager
def _stored(pair: Pair, texts: Sequence[str], config: ExtractionConfig) -> Iterator[FeatureStore]:
    """Extract texts into a temporary store, because the expectation is learned from all of them."""
    named = Texts(texts=tuple(texts), ids=tuple(map(str, range(len(texts)))))
    plan = StorePlan(key="", columns={"id": named.ids})
    with TemporaryDirectory() as folder:
        yield fill_store(LoadedPair(pair), named, Path(folder), config, plan, clock=ExtractionClock()).store


def score_texts(
    pair: Pair,
    texts: Sequence[str],
    *,
    attacks: str | Sequence[str] = "fast",
    classifier: MembershipClassifier | None = None,
    shots: Shots | None = None,
    max_length: int | None = None,
    batch_size: BatchSize = 16,
) -> dict[str, Float64[np.ndarray, " texts"]]:
    """Score texts with several attacks, the fast ones in one pass of each model.

    Args:
        pair: Target and reference.
        texts: Any strings, best some hundreds: the learned attack and `excess` learn from all of them how fine-tuning
            changed tokens in general.
        attacks: "fast", "all", or names. The bag-of-words control needs labels and is part of `audit` only.
        classifier: The learned attack, for example `shipped_classifier("lite")`; the shipped one `full` when None.
        shots: Texts of known membership, for attacks that use few-shot examples.
        max_length: Tokens read of each text; None for as many as an audit reads.
        batch_size: Texts per forward pass, or "auto" for as many as fit; scores do not depend on it.

    Returns:
        One float64 array per attack, in the order of the texts; higher is more member-like, NaN is unscorable.

    Raises:
        ConfigError: If an attack is unknown, or lacks what it needs: labels, or shots.
    """
    names = [name for name in select_attacks(attacks) if attacks not in ("fast", "all") or name != CONTROL]
    if CONTROL in names:
        raise ConfigError(f"{CONTROL}: needs labels, so it is part of an audit only; leave it out")
    if weights := [name for name in names if ATTACKS[name].observer != "logprobs"]:
        raise ConfigError(f"{', '.join(weights)}: reads the weights, so it is part of `audit` and `score` only")
    learned = [name for name in names if name in (LEARNED, EXCESS)]
    if learned and len(texts) < FEWEST_TO_LEARN_FROM:
        log.warning(
            "score_texts: %s learn from the given texts how fine-tuning changed tokens in general, and %d are too few: "
            "give at least %d, or name attacks that learn nothing, such as difference",
            " and ".join(learned), len(texts), FEWEST_TO_LEARN_FROM,
        )  # fmt: skip
    chosen = (classifier or shipped_classifier()) if LEARNED in names else None
    length = length_to_read(LoadedPair(pair), max_length)
    config = extraction_config(names, chosen, max_length=length, batch_size=batch_size)
    scores = {name: np.full(len(texts), np.nan) for name in names}
    if config.attacks or config.expectations:
        with _stored(pair, texts, config) as store:
            scores |= {name: store.scores(name) for name in store.score_names if name in names}
            if chosen is not None:
                scores[LEARNED] = classify_store(chosen, store).pooled
    several = MultiPassConfig(max_length=length, batch_size=batch_size, shots=shots or Shots())
    return scores | multi_pass_scores(pair, texts, names, several)
