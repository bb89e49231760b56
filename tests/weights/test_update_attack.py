"""The weights observer on small models that were really trained: members stand out, and what cannot be done is said."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltmia.errors import ConfigError, DataError
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.weights.update_attack import UpdateAttack, WeightsConfig

TOKENIZER = train_tokenizer(["The lamp burns low on the pier, and snow falls."] * 3, 280)
N_MEMBERS, N_TEXTS = 60, 180


def scored(*args, **options):
    with UpdateAttack(*args, **options) as attack:
        return attack.score()


def some_texts():
    """Texts of a small language in which some ids are common, so that all have something to teach."""
    rng = np.random.default_rng(0)
    odds = rng.dirichlet(np.full(279, 0.3))
    return [EncodedText(ids=1 + rng.choice(279, rng.integers(8, 14), p=odds)) for _ in range(N_TEXTS)]


def train(model, texts, optimizer):
    """One epoch in batches of six; return the second moments that Adam ends with."""
    order = np.random.default_rng(1).permutation(N_MEMBERS)
    for step in np.array_split(order, N_MEMBERS // 6):
        optimizer.zero_grad()
        for i in step:
            ids = torch.from_numpy(texts[i].ids)[None]
            (model(input_ids=ids, labels=ids).loss / len(step)).backward()
        optimizer.step()
    return {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() if p in optimizer.state}


@pytest.fixture(scope="module")
def trained():
    shape = TinyConfig(model_type="llama", vocab_size=280, hidden_size=32, n_layers=3, n_heads=2)
    base = build_base(shape, seed=0).eval()
    target, texts = copy.deepcopy(base), some_texts()
    moments = train(target, texts, torch.optim.AdamW(target.parameters(), lr=2e-4, weight_decay=0.0))
    return Pair(target=target, reference=base, tokenizer=TOKENIZER), texts, moments


def auc(score):
    used = np.arange(len(score)) < N_MEMBERS
    return (score[used][:, None] > score[~used]).mean()


def test_members_stand_out_of_a_full_fine_tune(trained, tmp_path) -> None:
    pair, texts, _ = trained
    found = scored(pair, texts, tmp_path, identity="a", config=WeightsConfig(n_coordinates=20_000))
    assert auc(found.score) > 0.95
    assert auc(found.alpha) > 0.95
    assert found.reasons == (None,) * N_TEXTS
    assert found.n_used_interval[0] - 10 < N_MEMBERS < found.n_used_interval[1] + 10
    assert 0.3 < found.explained < 1
    assert found.points == (0.0, 1.0)
    assert found.adaptive
    assert found.layers == (0, 1, 2)
    # Adam's first steps are as long as later ones, so alpha is near learning rate / batch size.
    assert found.alpha[:N_MEMBERS].mean() == pytest.approx(2e-4 / 6, rel=0.7)


def test_many_texts_are_scored_nearly_as_few(trained, tmp_path, monkeypatch) -> None:
    pair, texts, _ = trained
    config = WeightsConfig(n_coordinates=20_000)
    few = scored(pair, texts, tmp_path, identity="a", config=config)
    monkeypatch.setattr("ltmia.weights.regression.AT_ONCE", len(texts) - 1)
    many = scored(pair, texts, tmp_path, identity="a", config=config)
    assert auc(many.score) > auc(few.score) - 0.02
    assert np.corrcoef(few.alpha, many.alpha)[0, 1] > 0.95
    assert many.explained == pytest.approx(few.explained, abs=0.1)


def test_very_many_texts_are_read_at_fewer_coordinates() -> None:
    counts = [WeightsConfig().coordinates_of(n) for n in (1, 20_000, 100_000, 10**9)]
    assert counts == [100_000, 100_000, 20_000, 10_000]
    assert WeightsConfig(n_coordinates=500).coordinates_of(10**9) == 500


def test_scores_do_not_depend_on_the_order_of_texts(trained, tmp_path) -> None:
    pair, texts, _ = trained
    config = WeightsConfig(n_coordinates=5_000, points=(1.0,))
    order = np.random.default_rng(2).permutation(N_TEXTS)
    one = scored(pair, texts, tmp_path / "a", identity="a", config=config)
    other = scored(pair, [texts[i] for i in order], tmp_path / "b", identity="a", config=config)
    assert np.corrcoef(one.alpha[order], other.alpha)[0, 1] > 0.97  # batches for v are drawn anew


def test_a_text_without_a_gradient_has_no_score_and_a_reason(trained, tmp_path) -> None:
    pair, texts, _ = trained
    unscorable = EncodedText(ids=np.array([5]), reason="1 token(s): too few to score")
    config = WeightsConfig(n_coordinates=2_000, points=(1.0,))
    found = scored(pair, [*texts[:40], unscorable, *texts[40:]], tmp_path, identity="a", config=config)
    assert found.reasons[40] == unscorable.reason
    for values in (found.score, found.alpha, found.standard_error, found.posterior):
        assert np.isnan(values[40])
        assert np.isfinite(np.delete(values, 40)).all()


def test_a_gradient_of_zero_gives_no_score_and_a_reason(trained, tmp_path) -> None:
    pair, texts, _ = trained
    config = WeightsConfig(n_coordinates=2_000)
    with UpdateAttack(pair, texts[:30], tmp_path, identity="a", config=config) as attack:
        nothing = np.zeros((1, attack.gradients.file.shape.n_coordinates), np.float32)
        for point in range(2):
            attack.gradients.file.append(point, [7], nothing)
        found = attack.score()
        assert "zero" in str(found.reasons[7])
        assert np.isnan(found.score[7])
        assert np.isfinite(np.delete(found.score, 7)).all()
        for row in range(30):
            for point in range(2):
                attack.gradients.file.append(point, [row], nothing)
        with pytest.raises(DataError, match="only 0 of 30 texts have a gradient"):
            attack.score()


def test_the_optimizers_own_moments_are_read_from_safetensors(trained, tmp_path) -> None:
    pair, texts, moments = trained
    save_file(moments, tmp_path / "state.safetensors")
    config = WeightsConfig(n_coordinates=20_000, optimizer_state=tmp_path / "state.safetensors")
    found = scored(pair, texts, tmp_path / "g", identity="a", config=config)
    assert auc(found.score) > 0.95
    save_file({name: value for name, value in moments.items() if "q_proj" not in name}, tmp_path / "less.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    for name, message in (("less", "nothing for model.layers.0.self_attn.q_proj.weight"), ("bad", "not readable as")):
        wrong = WeightsConfig(n_coordinates=20_000, optimizer_state=tmp_path / f"{name}.safetensors")
        with pytest.raises(DataError, match=message):
            scored(pair, texts, tmp_path / "g", identity="a", config=wrong)


def test_members_stand_out_of_an_adapter(trained, tmp_path) -> None:
    pair, texts, _ = trained
    tuned = add_lora(copy.deepcopy(pair.reference), rank=4, alpha=8, seed=0)
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    train(tuned, texts, torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0))
    adapted = Pair(target=tuned.eval(), tokenizer=TOKENIZER)
    found = scored(adapted, texts, tmp_path, identity="a", config=WeightsConfig(n_coordinates=20_000))
    assert found.points == (0.0, 1.0)
    assert not found.is_low_rank, "the adapter itself is at hand"
    assert auc(found.score) > 0.85


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_tells_as_much_as_the_adapter(trained, tmp_path, dtype) -> None:
    pair, texts, _ = trained
    tuned = add_lora(copy.deepcopy(pair.reference), rank=4, alpha=8, seed=0)
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    train(tuned, texts, torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0))
    config = WeightsConfig(n_coordinates=20_000)
    apart = Pair(target=tuned.eval(), tokenizer=TOKENIZER)
    alone = scored(apart, texts, tmp_path / "adapter", identity="a", config=config)
    target = copy.deepcopy(tuned).merge_and_unload().to(dtype).float()
    base = copy.deepcopy(pair.reference).to(dtype).float()
    merged = Pair(target=target, reference=base, tokenizer=TOKENIZER)
    found = scored(merged, texts, tmp_path / "merged", identity="a", config=config)
    assert found.is_low_rank
    assert (alone.rounded, found.rounded) == (0.0, float(dtype == torch.bfloat16))
    assert auc(found.score) > auc(alone.score) - 0.03


def test_members_stand_out_of_sgd(trained, tmp_path) -> None:
    pair, texts, _ = trained
    target = copy.deepcopy(pair.reference)
    train_sgd(target, texts)
    config = WeightsConfig(n_coordinates=20_000)
    tuned = Pair(target=target, reference=pair.reference, tokenizer=TOKENIZER)
    found = scored(tuned, texts, tmp_path, identity="a", config=config)
    assert auc(found.score) > 0.99
    assert np.median(found.alpha[:N_MEMBERS]) == pytest.approx(1e-2 / 6, rel=0.2)
    assert found.n_used == pytest.approx(N_MEMBERS, abs=2)
    assert not found.adaptive


def train_sgd(model, texts):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in np.array_split(np.random.default_rng(1).permutation(N_MEMBERS), N_MEMBERS // 6):
        optimizer.zero_grad()
        for i in step:
            ids = torch.from_numpy(texts[i].ids)[None]
            (model(input_ids=ids, labels=ids).loss / len(step)).backward()
        optimizer.step()


def test_too_few_texts_and_impossible_settings_are_refused(trained, tmp_path) -> None:
    pair, texts, _ = trained
    with pytest.raises(DataError, match="9 texts can be scored"):
        scored(pair, texts[:9], tmp_path, identity="a")
    for bad in ({"n_coordinates": 0}, {"n_layers": 0}, {"power": 2.0}, {"points": (0.0, 0.2, 1.0)}, {"points": (1.5,)}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            WeightsConfig(**bad)
