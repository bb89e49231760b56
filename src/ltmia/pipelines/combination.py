"""One combination: fine-tune a base on drawn members, then leave the labelled store the classifier learns from."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ltmia.attacks.table import CONTROL, fast_attacks, select_attacks
from ltmia.data.splits import draw_membership
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.roc import auc
from ltmia.features.store import FeatureStore
from ltmia.lm.finetuning import FinetuneConfig, finetune
from ltmia.lm.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.pipelines.extraction import ExtractionClock, ExtractionConfig
from ltmia.pipelines.storing import StorePlan, fill_store
from ltmia.records import Texts

POOL_BUCKETS = (6, 7, 8)
"""Documents whose bucket is one of these are fine-tuned on; lower ones are for pretraining, 9 is never touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationConfig:
    """What a combination is made of, beside its base and its texts."""

    name: str
    n_members: int
    n_nonmembers: int
    finetuning: FinetuneConfig
    seed: int
    """Of the membership draw: every combination draws its own."""


def document_bucket(source: str) -> int:
    """Return the bucket 0..9 of a document, by its name alone, the same in every run."""
    return int(sha256(source.encode()).hexdigest()[:8], 16) % 10


def make_combination(base: Path, pool: Texts, config: CombinationConfig, folder: Path) -> FeatureStore:
    """Fine-tune `base` on members drawn from `pool` and store the features of members and non-members.

    A finished store is opened, not made again; the fine-tuned weights are deleted once it exists.

    Args:
        base: Model folder.
        pool: Texts never used to pretrain the base, with groups.
        config: Sizes, fine-tuning and seed.
        folder: Where the store goes.
    """
    if (folder / "manifest.json").is_file():
        return FeatureStore(folder)
    drawn = draw_membership(
        pool,
        n_members=config.n_members,
        n_nonmembers=config.n_nonmembers,
        n_validation=0,
        seed=config.seed,
    )
    texts = pool.take([*drawn.members.tolist(), *drawn.nonmembers.tolist()])
    labels = np.repeat([1, 0], [len(drawn.members), len(drawn.nonmembers)])
    weights = folder.with_name(folder.name + ".target")
    _finetune_target(base, texts.texts[: config.n_members], config, weights)
    pair = load_pair(weights, base, dtype="float32", device="cpu")
    columns: dict[str, Any] = {
        "id": list(texts.ids),
        "label": labels,
        "group": list(texts.groups or texts.ids),
    }
    recipe = {**asdict(config), "base": base.name, "texts": pool.source}
    store = fill_store(
        pair,
        texts,
        folder,
        ExtractionConfig(attacks=fast_attacks(select_attacks("fast"))),
        StorePlan(
            fingerprint=sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            columns=columns,
            manifest={"combination": recipe, "blind_auc": _blind_auc(texts, labels)},
        ),
        clock=ExtractionClock(),
    )
    shutil.rmtree(weights)
    return store


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


def _finetune_target(base: Path, members: tuple[str, ...], config: CombinationConfig, out: Path) -> None:
    if not out.is_dir():
        options = LoadOptions(dtype="float32", device="cpu")
        model, _ = load_model(str(base), options)
        finetune(model, load_tokenizer(str(base), options), members, config.finetuning, out)


def _blind_auc(texts: Texts, labels: np.ndarray) -> float:
    _, groups = np.unique(texts.groups or texts.ids, return_inverse=True)
    scores = bag_of_words(texts.texts, labels, groups).scores
    return auc(scores[labels == 1], scores[labels == 0])
