"""Fills a store by an extraction. It resumes after any batch; a finished store is reused."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ltmia.attacks.table import EXCESS
from ltmia.errors import StoreError
from ltmia.expectation.fit import expect_texts, folds_of
from ltmia.expectation.model import ExpectedLogRatio
from ltmia.features.manifest import MANIFEST_FILE
from ltmia.features.store import FeatureStore, StoreWriter
from ltmia.folders import make_folder
from ltmia.models.tokens import EncodedText, hash_encoded
from ltmia.progress import Report, silent
from ltmia.records import Texts, hash_strings
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.extraction import ExtractionConfig, ExtractionRun
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.reuse import note_reused

CONTENT = 3
"""Version of a store's content; stores of other versions are made again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """Content of a store besides the statistics."""

    key: str
    """Hash of the pair, see `PairIdentity.key`. Work is resumed if it and texts, columns and options are the same."""
    columns: Mapping[str, Sequence[Any]]
    """Per-text columns in input order."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the manifest."""
    learned: Mapping[str, ExpectedLogRatio] = field(default_factory=dict)
    """Fitted expectations, by kind. A kind that is not here is learned from the texts themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledStore:
    """A finished store, and the expectations that were fitted for it."""

    store: FeatureStore
    learned: Mapping[str, ExpectedLogRatio] = field(default_factory=dict)
    """Expectations that were fitted, by kind; empty if the store was finished before."""


def fill_store(
    pair: AuditedPair,
    texts: Texts,
    folder: Path,
    config: ExtractionConfig,
    plan: StorePlan,
    *,
    clock: ExtractionClock,
    report: Report = silent,
) -> FilledStore:
    """Extract texts into a store, or open the finished store of the same work.

    Work of an earlier run is reused only if every hash fits; the clock and the report say how much.
    """
    make_folder(folder)
    encoded = pair.encode(texts, config)
    fingerprint = scoring_fingerprint(plan, texts, encoded, config)
    if (store := _finished(folder, fingerprint)) is not None:
        n = len(texts)
        note_reused(clock.reused, "store", since=store.created, n_texts=n, of=n, report=report)
        clock.add_earlier(store.seconds)
        return FilledStore(store=store)
    writer = StoreWriter(folder, fingerprint=fingerprint, k=config.k, vocab_size=pair.vocab_size)
    if writer.damage:
        log.warning("%s; that batch and the following ones are made again", writer.damage)
    n_done = len(writer.done)
    if n_done:
        note_reused(clock.reused, "store", since=writer.created, n_texts=n_done, of=len(texts), report=report)
        clock.add_earlier(writer.seconds)
    run = ExtractionRun(encoded=encoded, done=writer.done, clock=clock, scratch=folder)
    before = clock.seconds
    for batch in pair.extract(texts, config, run):
        now = clock.seconds
        writer.append(batch.statistics.tokens, batch.texts, (now[0] - before[0], now[1] - before[1]))
        before = now
        n_done += len(batch.texts)
        report("scoring", n_done, len(texts))
    folds, expected = folds_of(texts), {}
    for i, kind in enumerate(config.expectations):
        report("learning expectations", i, len(config.expectations))
        expected[kind] = expect_texts(writer.statistics, encoded, folds, kind, plan.learned.get(kind))
    columns = {**plan.columns, "truncated": [text.truncated for text in encoded]}
    if "full" in expected:
        columns[f"score_{EXCESS}"] = expected["full"].excess.tolist()
    writer.finish(columns, plan.manifest, {kind: found.expectation for kind, found in expected.items()})
    return FilledStore(store=FeatureStore(folder), learned={kind: found.learned for kind, found in expected.items()})


def scoring_fingerprint(plan: StorePlan, texts: Texts, encoded: Sequence[EncodedText], config: ExtractionConfig) -> str:
    """Hash everything that decides a store's content. The batch size does not.

    Args:
        plan: Plan of the store; its key and columns are hashed.
        texts: Texts to score.
        encoded: The same texts as token ids.
        config: Settings of the extraction.
    """
    digest = sha256()
    options = {name: value for name, value in asdict(config).items() if name != "batch_size"}
    digest.update(json.dumps([CONTENT, plan.key, options], sort_keys=True).encode())
    hash_strings(digest, (*texts.texts, *texts.ids, *(texts.groups or ()), *map(str, texts.starts or ())))
    for name, values in sorted(plan.columns.items()):
        hash_strings(digest, (name, *map(str, values)))
    hash_encoded(digest, encoded)
    return digest.hexdigest()


def _finished(folder: Path, fingerprint: str) -> FeatureStore | None:
    """Open the finished store of the same work; None if there is none, or a damaged one."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        store = FeatureStore(folder)
    except StoreError as error:
        log.warning("%s: this is done now", error)
        return None
    return store if store.manifest["fingerprint"] == fingerprint else None
