"""The line from base to target begins at the base, whatever an adapter trains; a part of an update is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from gradient_oracles import TOKENIZER, small, some_texts
from ltmia.errors import ModelError
from ltmia.models.forward import scored_states
from ltmia.models.pair import Pair
from ltmia.models.weight_delta import changed_matrices, model_between
from ltmia.weights.coordinates import choose_coordinates

PARTS = {
    "head": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "some tokens": {"trainable_token_indices": [2, 3, 5]},
    "everything": {"target_modules": "all-linear", "use_dora": True, "modules_to_save": ["embed_tokens", "lm_head"]},
}


def moved(model):
    """Move whatever an adapter may train."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def adapted(model, **settings):
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **({"target_modules": ["q_proj"]} | settings)))


def logits(pair, runner):
    return runner.float32_head()(scored_states(pair, runner, some_texts(3)))[:, : pair.vocab_size].clone()


@pytest.mark.parametrize("settings", PARTS.values(), ids=PARTS)
def test_the_path_of_an_adapter_begins_at_its_base(settings: dict) -> None:
    pair = Pair(target=moved(adapted(small(), **settings)), tokenizer=TOKENIZER)
    before = {name: value.clone() for name, value in pair.target.state_dict().items()}
    with model_between(pair, 0.0) as runner:
        start = logits(pair, runner)
    assert torch.allclose(start, logits(pair, pair.reference_runner), atol=1e-5)
    assert not torch.allclose(start, logits(pair, pair.target_runner), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in pair.target.state_dict().items())


def test_biases_trained_under_an_adapter_go_back_to_the_base() -> None:
    base = small("gpt2")
    target = moved(adapted(copy.deepcopy(base), target_modules=["c_attn"], fan_in_fan_out=True, bias="all"))
    pair = Pair(target=target, reference=base, tokenizer=TOKENIZER)
    with model_between(pair, 0.0) as runner:
        assert torch.allclose(logits(pair, runner), logits(pair, pair.reference_runner), atol=1e-5)


def test_an_adapter_put_on_by_transformers_is_read_like_one_of_peft() -> None:
    base = small()
    target = copy.deepcopy(base)
    target.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    names = {
        matrix.name for matrix in changed_matrices(Pair(target=moved(target), reference=base, tokenizer=TOKENIZER))
    }
    assert names == {f"model.layers.{i}.self_attn.q_proj.lora_B.default.weight" for i in range(3)}


def test_an_adapter_on_another_base_than_the_reference_is_not_the_whole_update() -> None:
    base = small()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    pair = Pair(target=moved(adapted(tuned)), reference=base, tokenizer=TOKENIZER)
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj\.weight differs from the reference.*merge_and_unload"
    ):
        changed_matrices(pair)


def test_a_part_of_an_adapter_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmia.models.weight_delta.START_AT_ZERO", ("lora_B",))
    pair = Pair(target=moved(adapted(small(), **PARTS["embedding"])), tokenizer=TOKENIZER)
    with pytest.raises(ModelError, match="trains a part that is not known"):
        choose_coordinates(pair, n_coordinates=20, n_layers=1, seed=0)
