"""Makes the store of one combination: statistics and baseline scores of members and non-members."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ltmia.attacks.selection import fast_attacks
from ltmia.attacks.table import ATTACKS, CONTROL
from ltmia.classifier.combinations import RULES
from ltmia.data.duplicates import OVERLAP_SHARE, compare_sets, ngram_overlap
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.roc import auc
from ltmia.features.columns import EXPECTATIONS
from ltmia.features.manifest import write_manifest
from ltmia.features.store import FeatureStore
from ltmia.finetuning.privacy import PRIVACY_FILE
from ltmia.lab.state import read_json
from ltmia.lab.steps import CombinationWork, ExtractWork, Step
from ltmia.lab.texts import corpus_texts, draw_texts, pool_buckets
from ltmia.models.loading import load_pair
from ltmia.records import Texts
from ltmia.runtime import environment
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.store_filling import StorePlan, fill_store


def extract_store(work: ExtractWork, step: Step) -> Mapping[str, Any]:
    """Make the store of a combination; return its figures."""
    combination = work.of
    pool = corpus_texts(combination.corpus, pool_buckets(combination.corpus))
    drawn = draw_texts(combination, pool)
    texts = pool.take([*drawn.members.tolist(), *drawn.nonmembers.tolist()])
    labels = np.repeat([1, 0], [len(drawn.members), len(drawn.nonmembers)])
    pair = load_pair(combination.target, combination.base.path, dtype="float32", device=combination.device)
    wanted = {*work.extraction.scores, *RULES}  # classifiers need the latter
    config = ExtractionConfig(
        attacks=fast_attacks([name for name in ATTACKS if name in wanted]),
        k=work.extraction.k,
        max_length=combination.regime.max_length,
        batch_size=work.extraction.batch_size,
        expectations=tuple(EXPECTATIONS),
    )
    clock = ExtractionClock()
    columns: dict[str, Any] = {"id": list(texts.ids), "label": labels, "group": list(texts.groups or texts.ids)}
    identity = PairIdentity.of(pair)
    manifest = _manifest(combination, identity) | {
        "step": step.key,
        "blind_auc": _blind_auc(texts, labels),
        "overlap": _overlap(texts, len(drawn.members)),
    }
    store = fill_store(
        LoadedPair(pair),
        texts,
        step.product,
        config,
        StorePlan(key=f"{step.key} {identity.key}", columns=columns, manifest=manifest),
        clock=clock,
    ).store
    figures = dict(combination_figures(store))
    reference = store.scores("difference") - store.scores("loss")
    figures["reference_member_loss"] = float(np.nanmean(reference[labels == 1]))
    figures["reference_nonmember_loss"] = float(np.nanmean(reference[labels == 0]))
    # The store is finished; the figures are added to its manifest.
    write_manifest(step.product, store.manifest | {"figures": figures})
    seconds = {"forward_seconds": round(clock.forward.seconds, 1), "feature_seconds": round(clock.feature_seconds, 1)}
    return {**figures, **seconds}


def combination_figures(store: FeatureStore) -> Mapping[str, float]:
    """Return the AUC of every baseline on a labelled store, and the mean losses that say how strong the regime is."""
    labels = store.texts["label"].to_numpy()
    figures = {
        name: auc(store.scores(name)[labels == 1], store.scores(name)[labels == 0]) for name in store.score_names
    }
    loss = -store.scores("loss")
    figures["member_loss"] = float(np.nanmean(loss[labels == 1]))
    figures["nonmember_loss"] = float(np.nanmean(loss[labels == 0]))
    figures[CONTROL] = float(store.manifest["blind_auc"])
    return figures


def _manifest(work: CombinationWork, identity: PairIdentity) -> dict[str, Any]:
    """Return the entries of a store's manifest, without paths of this machine."""
    regime = work.regime
    return {
        "combination": {
            "name": work.combination.name,
            "base": work.base.name,
            "corpus": work.corpus.name,
            "role": work.corpus.role,
            "regime": work.combination.regime,
            "n_members": regime.n_members,
            "n_nonmembers": regime.n_nonmembers,
            "n_validation": regime.n_validation,
            "finetuning": asdict(regime.finetuning(work.draw_seed)),
            "seed": work.combination.seed,
            "draw_seed": work.draw_seed,
        },
        "base": {
            "key": work.base.key,
            "architecture": identity.reference.architecture,
            "n_parameters": identity.reference.n_parameters,
            "sha256": identity.reference.sha256,
            "vocab_size": identity.tokenizer.vocab_size,
        },
        "corpus": {"name": work.corpus.name, **work.corpus.content},
        "target_sha256": identity.target.sha256,
        **_privacy(work.target / PRIVACY_FILE),
        "environment": environment(),
    }


def _privacy(file: Path) -> dict[str, Any]:
    """Return the budget that the fine-tuning spent, if it was under differential privacy."""
    return {"privacy": read_json(file)} if file.is_file() else {}


def _blind_auc(texts: Texts, labels: np.ndarray) -> float:
    _, groups = np.unique(texts.groups or texts.ids, return_inverse=True)
    scores = bag_of_words(texts.texts, labels, groups).scores
    return auc(scores[labels == 1], scores[labels == 0])


def _overlap(texts: Texts, n_members: int) -> dict[str, Any]:
    """Measure the overlap of wording between members and non-members."""
    members, nonmembers = texts.texts[:n_members], texts.texts[n_members:]
    across = compare_sets(members, nonmembers).across
    shared = ngram_overlap(nonmembers, members)
    groups = texts.groups or texts.ids
    return {
        "shared_documents": len(set(groups[:n_members]) & set(groups[n_members:])),
        "exact_duplicates": len(across.exact),
        "near_duplicates": len(across.near),
        "mean_shared_ngrams": round(shared.mean, 5),
        "n_over_30_percent": shared.n_over(OVERLAP_SHARE),
        "ngram_words": shared.n_words,
    }
