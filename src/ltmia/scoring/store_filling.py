"""Extraction into a store: resumable at every batch, and read instead of made again once it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltmia.attacks.table import EXCESS
from ltmia.expectation.fit import expect_texts, folds_of
from ltmia.expectation.model import ExpectedLogRatio
from ltmia.features.store import FeatureStore, StoreWriter
from ltmia.folders import make_folder
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.passes import ExtractionClock


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What a store is to hold beside the statistics."""

    fingerprint: str
    """Hash of all that decides its content: work is resumed only for the same one."""
    columns: Mapping[str, Sequence[Any]]
    """Per-text columns in input order."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """What made it."""
    learned: Mapping[str, ExpectedLogRatio] = field(default_factory=dict)
    """Says what to expect, by kind; a kind that is not here is learned from the texts themselves."""


def fill_store(
    pair: AuditedPair,
    texts: Texts,
    folder: Path,
    config: ExtractionConfig,
    plan: StorePlan,
    *,
    clock: ExtractionClock,
    report: Report = silent,
) -> FeatureStore:
    """Extract texts into a store, or open the finished one that the same work left."""
    make_folder(folder)
    if (folder / "manifest.json").is_file():
        store = FeatureStore(folder)
        if store.manifest["fingerprint"] == plan.fingerprint:
            return store
    writer = StoreWriter(folder, fingerprint=plan.fingerprint, k=config.k, vocab_size=pair.vocab_size)
    n_done = len(writer.done)
    encoded = pair.encode(texts, config)
    for batch in pair.extract(texts, config, encoded=encoded, done=writer.done, clock=clock, scratch=folder):
        writer.append(batch.statistics.tokens, batch.texts)
        n_done += len(batch.texts)
        report("scoring", n_done, len(texts))
    folds, expected = folds_of(texts), {}
    for i, kind in enumerate(config.expectations):
        report("learning what to expect", i, len(config.expectations))
        expected[kind] = expect_texts(writer.statistics, encoded, folds, kind, plan.learned.get(kind))
    columns = {**plan.columns, "truncated": [text.truncated for text in encoded]}
    if "full" in expected:
        columns[f"score_{EXCESS}"] = expected["full"].excess.tolist()
    writer.finish(columns, plan.manifest, {kind: found.expectation for kind, found in expected.items()})
    return FeatureStore(folder)
