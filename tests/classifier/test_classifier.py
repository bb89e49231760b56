"""The learned attack: the published shape, training on real stores, saving, loading, refusing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ltmia.classifier.combinations import RULES, Combination, TrainingData, n_summary, summary_features
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.classifier.networks import NETWORKS, Standardize, build_network, sinusoids
from ltmia.classifier.training import TrainingConfig, macro_auc, membership_loss, train_network
from ltmia.errors import ConfigError, LtmiaError, StoreError
from ltmia.evaluation.roc import auc
from ltmia.features.columns import feature_columns
from ltmia.features.per_token import FeatureBatch
from planted_stores import K, make_store

COLUMNS, N_SUMMARY = feature_columns("excess", K), n_summary("excess")
N_FEATURES = len(COLUMNS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Combination]:
    root = tmp_path_factory.mktemp("stores")
    return [Combination(make_store(root / f"c{i}", gain=1.0, seed=i)) for i in range(3)]


@pytest.fixture(scope="module")
def fitted(stores: list[Combination]) -> MembershipClassifier:
    config = TrainingConfig(epochs=6, half_batch=20)
    return MembershipClassifier(k=K).fit(stores[:2], stores[2:], config=config)


def test_the_published_network_has_its_published_size() -> None:
    network = build_network("published", columns=feature_columns("published", 20), n_summary=7)
    assert sum(p.numel() for p in network.parameters()) == 827_906


def test_a_planted_signal_is_learned_and_carries_over(fitted: MembershipClassifier, stores: list[Combination]) -> None:
    assert macro_auc(fitted.network_, stores[2:], fitted.feature_version) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_and_batch_size_do_not_matter(name: str) -> None:
    network = build_network(name, columns=COLUMNS, n_summary=N_SUMMARY).eval()
    values, mask = torch.randn(3, 11, N_FEATURES), torch.ones(3, 11, dtype=torch.bool)
    mask[1, 6:] = False
    values[~mask] = 0
    summary = torch.randn(3, N_SUMMARY)
    padded = torch.nn.functional.pad(values, (0, 0, 0, 9))
    wider = torch.nn.functional.pad(mask, (0, 9))
    with torch.inference_mode():
        plain = network(values, mask, summary)
        torch.testing.assert_close(network(padded, wider, summary), plain, atol=1e-5, rtol=1e-5)
        alone = network(values[1:2, :6], mask[1:2, :6], summary[1:2])
        torch.testing.assert_close(alone, plain[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_text_poisons_nothing(name: str) -> None:
    network = build_network(name, columns=COLUMNS, n_summary=N_SUMMARY)
    mask = torch.tensor([[True, True], [False, False]])
    logits = network(torch.randn(2, 2, N_FEATURES), mask, torch.randn(2, N_SUMMARY))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_logit_leans_on_the_mean_excess_once_it_has_learned() -> None:
    network = build_network("conv", columns=COLUMNS, n_summary=N_SUMMARY, lean=7.0).eval()
    values, mask = torch.randn(4, 7, N_FEATURES), torch.ones(4, 7, dtype=torch.bool)
    mask[2, 3:] = False
    values[~mask] = 0
    summary = torch.randn(4, N_SUMMARY)
    excess = [values[i, : int(mask[i].sum()), COLUMNS.index("excess")].mean().item() for i in range(4)]
    dropout = [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    with torch.inference_mode():
        leaning = network(values, mask, summary)
        network.train()
        for module in dropout:
            module.eval()
        learned = network(values, mask, summary)
    np.testing.assert_allclose(leaning - learned, 7.0 * np.array(excess), rtol=1e-4, atol=1e-4)


def test_pairwise_loss_equals_a_double_loop() -> None:
    logits, labels = torch.randn(9), torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1, 1])
    config = TrainingConfig(pairwise_weight=0.7, label_smoothing=0.1)
    smooth = [0.95 if y else 0.05 for y in labels]
    point = np.mean(
        [-y * np.log(p) - (1 - y) * np.log(1 - p) for y, p in zip(smooth, torch.sigmoid(logits).tolist(), strict=True)]
    )
    pairs = [np.log1p(np.exp(-(a - b))) for a in logits[labels == 1].tolist() for b in logits[labels == 0].tolist()]
    assert membership_loss(logits, labels, config).item() == pytest.approx(point + 0.7 * np.mean(pairs), rel=1e-5)


def test_saved_and_loaded_it_says_the_same(
    fitted: MembershipClassifier, stores: list[Combination], tmp_path: Path
) -> None:
    batch = stores[2].batch(np.arange(40), "excess")
    fitted.save_pretrained(tmp_path / "saved")
    again = MembershipClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict_logit(batch), fitted.predict_logit(batch))
    assert again.domain_.names == ("c0", "c1")
    assert again.domain_.distance(batch) == pytest.approx(fitted.domain_.distance(batch), rel=1e-5)
    assert "c0" in (tmp_path / "saved" / "README.md").read_text("utf-8")


def test_the_card_shows_the_results_it_is_given(fitted: MembershipClassifier, tmp_path: Path) -> None:
    row = {
        "auc": "0.9 [0.8, 1.0]",
        "best_baseline_auc": "wbc 0.7",
        "tpr_at_0.01": "0.5",
        "best_baseline_tpr_at_0.01": "loss 0.1",
    }
    strict = {"tpr_at_0.001": "0.3", "best_baseline_tpr_at_0.001": "zlib 0.05"}
    fitted.save_pretrained(tmp_path / "saved", {"a.b.c": row, "d.e.f": row | strict})
    card = (tmp_path / "saved" / "README.md").read_text("utf-8").splitlines()
    assert f"| a.b.c | {' | '.join(row.values())} | – | – |" in card
    assert f"| d.e.f | {' | '.join((row | strict).values())} |" in card


def test_unscorable_texts_are_nan_and_probabilities_follow_logits(fitted: MembershipClassifier) -> None:
    values, mask = np.zeros((2, 3, N_FEATURES), np.float32), np.array([[True] * 3, [False] * 3])
    batch = FeatureBatch(values=values, mask=mask, version="excess", summary=np.zeros((2, N_SUMMARY), np.float32))
    logits = fitted.predict_logit(batch)
    assert np.isnan(logits[1])
    assert fitted.predict_proba(batch)[0] == pytest.approx(1 / (1 + np.exp(-logits[0])))
    with pytest.raises(ConfigError, match="excess"):
        fitted.predict_logit(FeatureBatch(values=values, mask=mask, version="published"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda p: p.write_text("{")),
        ("config.json", lambda p: p.write_text(json.dumps({"format_version": 9}))),
        ("config.json", lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"outside_limit": 10**400}))),
        ("config.json", lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"lean": float("inf")}))),
        ("config.json", lambda p: p.unlink()),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:100])),
        ("model.safetensors", lambda p: p.unlink()),
    ],
)
def test_a_damaged_classifier_is_refused(fitted: MembershipClassifier, tmp_path: Path, name: str, damage) -> None:
    fitted.save_pretrained(tmp_path / "saved")
    damage(tmp_path / "saved" / name)
    with pytest.raises(StoreError, match="not a usable classifier"):
        MembershipClassifier.from_pretrained(tmp_path / "saved")


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StoreError):
        MembershipClassifier.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_broken_loss_names_the_combination(tmp_path: Path, stores: list[Combination]) -> None:
    network = build_network("conv", columns=COLUMNS, n_summary=N_SUMMARY)
    with torch.no_grad():
        network.embed.weight.fill_(torch.nan)
    data = TrainingData(training=stores[:1], validation=[], version="excess")
    with pytest.raises(LtmiaError, match="c0: the training loss is nan"):
        train_network(network, data, TrainingConfig(epochs=1))


def test_the_shipped_classifier_loads_and_tells_members(stores: list[Combination]) -> None:
    shipped = shipped_classifier()
    logits = shipped.predict_logit(stores[0].batch(np.arange(120), shipped.feature_version))
    labels = stores[0].labels
    assert auc(logits[labels == 1], logits[labels == 0]) > 0.8


def test_summary_is_finite_whatever_the_scores() -> None:
    scores = {name: np.array([np.nan, 1e12, 0.0]) for name in (*RULES, "excess")}
    assert np.isfinite(summary_features(scores)[:, 3]).all()


def test_standardize_and_positions() -> None:
    standardize = Standardize(2)
    rows = torch.randn(500, 2) * 3 + 5
    standardize.fit(rows)
    assert standardize(rows).mean().abs() < 0.05
    assert sinusoids(700, 16).shape == (700, 16)
