"""What the classifier `lite` reads: by a naive oracle, nothing that no server gives; and the shipped one at work."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from commands import run_ltmia
from ltmia.classifier.combinations import Combination, TrainingData, gather_inputs
from ltmia.classifier.membership import SHIPPED, MembershipClassifier, chosen_classifier, shipped_classifier
from ltmia.classifier.training import TrainingConfig, macro_auc
from ltmia.classifier.windows import classify_store
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, StoreError
from ltmia.evaluation.roc import auc
from ltmia.expectation.fit import expect_texts
from ltmia.expectation.model import fold_of, mean_excess
from ltmia.features.columns import LITE_COLUMNS
from ltmia.features.manifest import file_sha256, write_manifest
from ltmia.features.packing import pack_statistics
from ltmia.features.per_token import per_token_features
from ltmia.features.statistics import token_statistics
from ltmia.features.store import FeatureStore
from ltmia.lab.evaluate import evaluate
from ltmia.models.loading import load_pair
from ltmia.models.tokens import EncodedText
from ltmia.records import Expectation, RaggedStatistics
from ltmia.scoring.in_memory import extract_features, score_texts
from planted_stores import make_store

SERVED = ("target_logp", "reference_logp", "target_rank", "reference_rank", "top_logp", "reference_top_logp")
"""Statistics that a server of log-probabilities gives."""


def drawn(n_texts: int, length: int, seed: int, vocab: int = 40) -> tuple[RaggedStatistics, list[np.ndarray]]:
    """Statistics of random texts, and their token ids."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, vocab, length + 1) for _ in range(n_texts)]
    truth = torch.tensor(np.concatenate([text[1:] for text in ids]))
    reference = rng.normal(0, 2, (len(truth), vocab)).astype(np.float32)
    target = reference + rng.normal(0, 0.5, reference.shape).astype(np.float32)
    tokens = token_statistics(torch.tensor(target), torch.tensor(reference), truth, 5)
    return RaggedStatistics(tokens=tokens, offsets=np.arange(n_texts + 1) * length, vocab_size=vocab), ids


def spoilt(statistics: RaggedStatistics, kind: str) -> RaggedStatistics:
    """Replace what no server gives: by NaN (ranks by 0), or by random numbers."""
    rng, changes = np.random.default_rng(3), {}
    for field in fields(statistics.tokens):
        values = getattr(statistics.tokens, field.name)
        if field.name not in SERVED:
            filled = np.nan if values.dtype == np.float32 else 0
            drawn_values = np.abs(rng.normal(0, 9, values.shape)).astype(values.dtype)
            changes[field.name] = drawn_values if kind == "random" else np.full_like(values, filled)
    top = statistics.tokens.top_logp.copy()
    top[:, 3:] = -7.0
    return replace(statistics, tokens=replace(statistics.tokens, **changes, top_logp=top))


def test_lite_columns_are_what_a_naive_loop_makes_of_logits() -> None:
    rng, n, vocab = np.random.default_rng(0), 30, 17
    target, reference = rng.normal(0, 3, (2, n, vocab)).astype(np.float32)
    truth = rng.integers(0, vocab, n)
    tokens = token_statistics(torch.tensor(target), torch.tensor(reference), torch.tensor(truth), 4)
    said = [rng.normal(0, 1, n).astype(np.float32), *rng.integers(0, 9, (2, n)).astype(np.float32)]
    spread = rng.uniform(0.5, 2, n).astype(np.float32)
    expectation = Expectation(log_ratio=said[0], token_count=said[1], pair_count=said[2], spread=spread)
    texts = RaggedStatistics(tokens=tokens, offsets=np.array([0, n]), vocab_size=vocab, expectation=expectation)
    found = per_token_features(texts, version="lite").values[0]
    for t in range(n):
        row: dict[str, float] = {}
        logps = {}
        for name, logits in (("target", target[t]), ("reference", reference[t])):
            total = math.log(sum(math.exp(x) for x in logits))
            logps[name] = sorted((float(x) - total for x in logits), reverse=True)
            own = float(logits[truth[t]]) - total
            rank = 1 + sum(float(x) > float(logits[truth[t]]) for x in logits)
            row |= {f"{name}_logp": own, f"{name}_p": math.exp(own), f"{name}_hit": float(rank == 1)}
            row[f"{name}_rank"] = math.log(1 + rank) / math.log(1 + vocab)
            row[f"{name}_top_gap"] = own - logps[name][0]
        ratio = row["target_logp"] - row["reference_logp"]
        excess = (ratio - float(said[0][t])) / float(spread[t])
        row |= {f"target_top_logp_{i + 1}": logps["target"][i] for i in range(3)}
        row |= {"reference_top_logp": logps["reference"][0], "log_ratio": ratio, "log_ratio_tanh": math.tanh(ratio)}
        row |= {"log_ratio_tanh4": math.tanh(4 * ratio), "log_ratio_asinh": math.asinh(4 * ratio)}
        row |= {"rank_gain": row["reference_rank"] - row["target_rank"], "p_gain": row["target_p"] - row["reference_p"]}
        row |= {"excess": max(min(excess, 20), -20), "excess_tanh": math.tanh(excess)}
        row |= {"excess_tanh3": math.tanh(3 * excess), "expected_log_ratio": float(said[0][t]) / float(spread[t])}
        row |= {"token_count": math.log1p(said[1][t]), "pair_count": math.log1p(said[2][t])}
        np.testing.assert_allclose(found[t], [row[name] for name in LITE_COLUMNS], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["missing", "random"])
def test_nothing_that_a_server_does_not_give_is_looked_at(kind: str) -> None:
    statistics, ids = drawn(60, 30, 1)
    encoded, folds = [EncodedText(ids=text) for text in ids], [fold_of(str(i)) for i in range(60)]
    outcomes = []
    for given in (statistics, spoilt(statistics, kind)):
        whole = expect_texts(lambda _rows, given=given: given, encoded, folds, "lite")
        known = replace(given, expectation=whole.expectation)
        outcomes.append((per_token_features(known, version="lite").values, mean_excess(known), whole.excess))
    for before, after in zip(*outcomes, strict=True):
        assert np.isfinite(before).all()
        np.testing.assert_array_equal(after, before)


def test_what_is_expected_of_a_text_does_not_follow_from_what_the_target_says_of_it() -> None:
    statistics, ids = drawn(60, 30, 2)
    encoded, folds = [EncodedText(ids=text) for text in ids], [i % 3 for i in range(60)]
    own = np.repeat(np.array(folds) == 1, 30)
    logp = np.where(own, statistics.tokens.target_logp - 1.5, statistics.tokens.target_logp).astype(np.float32)
    changed = replace(statistics, tokens=replace(statistics.tokens, target_logp=logp))
    found = [expect_texts(lambda _rows, s=s: s, encoded, folds, "lite").expectation for s in (statistics, changed)]
    np.testing.assert_array_equal(found[1].log_ratio[own], found[0].log_ratio[own])


@pytest.mark.parametrize("kind", ["missing", "random"])
def test_the_shipped_lite_scores_without_the_other_statistics(tmp_path: Path, kind: str) -> None:
    classifier = shipped_classifier("lite")
    store = FeatureStore(make_store(tmp_path / "store", gain=1.0, seed=1))
    before = classify_store(classifier, store).pooled
    rows = np.arange(len(store))
    tokens = spoilt(store.statistics(rows), kind).tokens
    order = np.argsort(store.texts["start"].to_numpy())
    assert (order == rows).all()
    (tmp_path / "store" / "tokens.f16").write_bytes(pack_statistics(tokens).tobytes())
    table = store.texts
    column = table.column_names.index("score_min_k_plus_plus")
    table = table.set_column(column, "score_min_k_plus_plus", [np.full(len(store), np.nan)])
    column = table.column_names.index("score_excess")
    pq.write_table(
        table.set_column(column, "score_excess", [np.full(len(store), np.nan)]), tmp_path / "store/texts.parquet"
    )
    files = {name: file_sha256(store.folder / name) for name in store.manifest["files"]}
    write_manifest(store.folder, store.manifest | {"files": files})
    changed = FeatureStore(tmp_path / "store")
    np.testing.assert_array_equal(classify_store(classifier, changed).pooled, before)
    labels = table["label"].to_numpy()
    assert auc(before[labels == 1], before[labels == 0]) > 0.8


def test_a_lite_classifier_learns_a_planted_signal(tmp_path: Path) -> None:
    stores = [Combination(make_store(tmp_path / f"c{i}", gain=1.0, seed=i)) for i in range(2)]
    fitted = MembershipClassifier(feature_version="lite", k=5).fit(
        stores[:1], config=TrainingConfig(epochs=6, half_batch=20)
    )
    assert macro_auc(fitted.network_, stores[1:], "lite") > 0.85
    fitted.save_pretrained(tmp_path / "saved")
    again = MembershipClassifier.from_pretrained(tmp_path / "saved")
    batch = stores[1].batch(np.arange(40), "lite")
    np.testing.assert_array_equal(again.predict_logit(batch), fitted.predict_logit(batch))
    assert "server of log-probabilities" in (tmp_path / "saved" / "README.md").read_text("utf-8")


def test_a_store_without_lite_is_read_for_excess_and_refused_for_lite(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "old", gain=1.0, seed=4)
    (folder / "expected_lite.f16").unlink()
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["expectations"].remove("lite")
    write_manifest(folder, manifest)
    old = Combination(folder)
    assert old.batch(np.arange(5), "excess").mask.any()
    for refused in (
        lambda: gather_inputs(old.store, np.arange(5), "lite"),
        lambda: TrainingData(training=[old], validation=[], version="lite"),
        lambda: evaluate(shipped_classifier("lite"), [old], tmp_path / "test"),
    ):
        with pytest.raises(StoreError, match=r"old: a store without expected_lite\.f16.*extract it again"):
            refused()
    assert not (tmp_path / "test").exists()


def test_the_shipped_classifiers_go_by_name() -> None:
    assert {name: shipped_classifier(name).feature_version for name in SHIPPED} == dict(SHIPPED)
    assert chosen_classifier(None).feature_version == "excess"
    assert chosen_classifier("lite").feature_version == "lite"
    with pytest.raises(ConfigError, match="there is no classifier 'small' in this package; there are full, lite"):
        shipped_classifier("small")


def test_lite_audits_a_real_pair(materials: Path, tmp_path: Path) -> None:
    """By the command, and in memory with the same scores; nothing that only `full` needs is learned or kept."""
    texts = ["--members", str(materials / "train.jsonl"), "--nonmembers", str(materials / "held-out.jsonl")]
    models = [str(materials / "my-model"), "--base", str(materials / "my-base")]
    out = tmp_path / "audit"
    done = run_ltmia("audit", *models, *texts, "--attacks", "ltmia,loss", "--classifier", "lite", "-o", str(out))
    assert done.returncode == 0, done.stderr
    store = FeatureStore(out / "private" / "store")
    assert store.expectations == {"lite"}
    assert not {"excess", "min_k_plus_plus"} & set(store.score_names)
    records = pq.read_table(out / "records.parquet")
    scores, labels = records["score_ltmia"].to_numpy(), records["label"].to_numpy()
    assert auc(scores[labels == 1], scores[labels == 0]) > 0.8
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["settings"]["classifier"] == "lite"
    # The same pass in this process.
    pair = load_pair(str(materials / "my-model"), str(materials / "my-base"), device="cpu")
    read = [*read_texts(str(materials / "train.jsonl")).texts, *read_texts(str(materials / "held-out.jsonl")).texts]
    again = score_texts(pair, read, attacks=["ltmia"], classifier=shipped_classifier("lite"))["ltmia"]
    np.testing.assert_allclose(again, scores, atol=0.1)  # the records hold rounded scores
    assert extract_features(pair, read[:20], version="lite").values.shape == (20, 128, len(LITE_COLUMNS))
