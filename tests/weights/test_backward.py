"""Gradients of single texts in every way that a layer may be called, and what reading them leaves behind: nothing."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from gradient_oracles import TOKENIZER, by_definition, close, moved_pair, small, some_texts
from ltmia.errors import ModelError
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.models.weight_delta import changed_matrices
from ltmia.weights.backward import MatrixPlaces, TextGradients
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.gradients import GradientReader

DRAW = {"n_coordinates": 100, "n_layers": 1, "seed": 0}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 32}
FLATTENED = {
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64}, "fc2"),
    "qwen2_moe": (EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}, "shared_expert.down_proj"),
    "deepseek_v3": (
        EXPERTS
        | {"n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "q_lora_rank": 8}
        | {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
        "kv_b_proj",
    ),
}
"""Models with a layer that gets its tokens in another shape than (batch, seq, in), and that layer."""


class Expert(nn.Module):
    """A layer that gets only some of the tokens, those of all texts together."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16, bias=False)

    def forward(self, hidden):
        chosen = hidden[..., 0] > 0
        return torch.zeros_like(hidden).masked_scatter(chosen[..., None], self.inner(hidden[chosen]))


def expert_pair():
    torch.manual_seed(0)
    base = small()
    base.model.layers[2].mlp = Expert()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return Pair(target=target, reference=base, tokenizer=TOKENIZER)


def read(pair, texts, places, batched=True):
    with TextGradients(pair.target, pair.target_runner, places, batched=batched) as gradients:
        return gradients([text.ids for text in texts], [text.start for text in texts])


def expected(pair, texts, places):
    return torch.stack(
        [torch.cat([by_definition(pair.target, p.name, text).reshape(-1)[p.flat] for p in places]) for text in texts]
    )


@pytest.mark.parametrize("model_type", FLATTENED)
def test_layers_that_get_tokens_in_another_shape_are_read(model_type: str) -> None:
    settings, layer = FLATTENED[model_type]
    special = {"vocab_size": 280, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **special, **SHAPE, **settings), dtype=torch.float32
    ).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    pair, texts = Pair(target=target, reference=base, tokenizer=TOKENIZER), some_texts(3)
    coordinates = choose_coordinates(pair, **DRAW)
    assert coordinates.batched
    assert any(layer in place.name for place in coordinates.places)
    assert close(read(pair, texts, coordinates.places), expected(pair, texts, coordinates.places))


def test_a_layer_that_mixes_texts_is_left_out_and_never_read_in_a_batch(tmp_path, monkeypatch) -> None:
    pair, texts = expert_pair(), some_texts(4)
    coordinates = choose_coordinates(pair, **DRAW)
    assert coordinates.batched
    assert not any("inner" in place.name for place in coordinates.places)
    last = pair.target.model.layers[2]
    n_read = sum(weight.numel() for weight in last.self_attn.parameters())
    assert coordinates.unread == pytest.approx(256 / (256 + n_read))
    assert close(read(pair, texts, coordinates.places), expected(pair, texts, coordinates.places))

    monkeypatch.setattr("ltmia.weights.coordinates._read_in_batches", lambda _, matrices: matrices)
    forced = GradientReader(pair, texts, choose_coordinates(pair, **DRAW), (1.0,), tmp_path, identity="a")
    with pytest.raises(ModelError, match=r"layers\.2\.mlp\.inner\.weight: .*several texts mixed"):
        forced.finish()
    assert not any(forced.file.is_done(0, row) for row in range(4))


@pytest.mark.parametrize("batched", [True, False])
def test_a_training_under_way_keeps_its_gradients(batched: bool) -> None:
    pair, texts = moved_pair(), some_texts(1)
    pair.target.model.norm.weight.requires_grad_(False)
    ids = torch.arange(1, 9)[None]
    pair.target(input_ids=ids, labels=ids).loss.backward()
    before = {name: (p.requires_grad, p.grad) for name, p in pair.target.named_parameters()}
    kept = {name: gradient.clone() for name, (_, gradient) in before.items() if gradient is not None}
    places = choose_coordinates(pair, **DRAW).places
    assert close(read(pair, texts, places, batched), expected(pair, texts, places))
    for name, parameter in pair.target.named_parameters():
        assert (parameter.requires_grad, parameter.grad) == before[name] or torch.equal(parameter.grad, kept[name])
        assert parameter.grad is before[name][1]
    assert all(torch.equal(before[name][1], gradient) for name, gradient in kept.items())


def test_nothing_is_left_behind_if_reading_cannot_begin() -> None:
    pair = moved_pair()
    places = choose_coordinates(pair, **DRAW).places
    wrong = MatrixPlaces(name="model.layers.9.no.weight", layout="linear", shape=(1, 1), flat=np.zeros(1, np.int64))
    with pytest.raises(AttributeError), TextGradients(pair.target, pair.target_runner, [*places, wrong], batched=True):
        pass
    assert all(parameter.requires_grad for parameter in pair.target.parameters())
    assert not any(module._forward_hooks for module in pair.target.modules())


def test_gradients_are_read_under_inference_mode_too() -> None:
    pair, texts = moved_pair(), some_texts(3)
    with torch.inference_mode():
        places = choose_coordinates(pair, **DRAW).places
        found = read(pair, texts, places)
        assert torch.is_inference_mode_enabled()
    assert close(found, expected(pair, texts, places))


def test_float16_keeps_small_gradients() -> None:
    pair = moved_pair()
    with torch.no_grad():
        for model in (pair.target, pair.reference):
            model.model.embed_tokens.weight.mul_(1e4)  # the larger the hidden states, the smaller the gradients
            model.half()
    texts = [EncodedText(ids=np.random.default_rng(0).integers(1, 280, 60))]
    places = choose_coordinates(pair, **DRAW).places
    found = read(pair, texts, places)
    pair.target.float()
    wanted = expected(pair, texts, places)
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3


def test_a_model_without_gradients_is_refused() -> None:
    pair = moved_pair()
    pair.target.model.forward = torch.no_grad()(pair.target.model.forward)
    with pytest.raises(ModelError, match="the target gives no gradients"):
        choose_coordinates(pair, **DRAW)


def test_an_update_of_nothing_or_of_no_number_is_refused() -> None:
    base = small()
    target = copy.deepcopy(base)
    with torch.no_grad():
        target.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    pair = Pair(target=target, reference=base, tokenizer=TOKENIZER)
    with pytest.raises(ModelError, match="the same at all 3 coordinates"):
        choose_coordinates(pair, n_coordinates=3, n_layers=1, seed=0)
    pair = moved_pair()
    with torch.no_grad():
        changed_matrices(pair)[-1].base.fill_(torch.inf)
    with pytest.raises(ModelError, match="not a finite number"):
        choose_coordinates(pair, **DRAW)
