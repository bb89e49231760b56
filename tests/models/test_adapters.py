"""Adapters of every kind against plain PEFT, a text at a time: the same numbers, or a refusal that names why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ltmia.errors import ModelError
from ltmia.features.statistics import token_statistics
from ltmia.finetuning.training import save_model
from ltmia.models.forward import forward_pair
from ltmia.models.loading import load_pair
from ltmia.models.tokens import encode_texts
from ltmia.records import TokenStatistics
from plain_loops import TEXTS, TOKENIZER, logps

TOKENS = [*TOKENIZER(TEXTS[0])["input_ids"][1:3], 299]
CPU = {"dtype": "float32", "device": "cpu"}
TARGETS = ["q_proj", "v_proj", "down_proj"]
LORA = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": TARGETS}
WITHIN = 1e-4
"""Nats a token."""

ONE_COPY = {
    "LoRA": lambda: LoraConfig(**LORA),
    "rank-stabilised LoRA": lambda: LoraConfig(**LORA, use_rslora=True),
    "DoRA": lambda: LoraConfig(**LORA, use_dora=True),
    "LoRA on embeddings and head": lambda: LoraConfig(**(LORA | {"target_modules": ["embed_tokens", "lm_head"]})),
    "EVA": lambda: LoraConfig(**LORA, init_lora_weights="eva"),
    "ranks by pattern": lambda: LoraConfig(**LORA, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "one layer": lambda: LoraConfig(**LORA, layers_to_transform=[1]),
    "bias of its own": lambda: LoraConfig(**LORA, lora_bias=True),
    "saved head": lambda: LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "saved embeddings": lambda: LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "saved norms": lambda: LoraConfig(**LORA, modules_to_save=["input_layernorm", "norm"]),
    "trainable tokens in LoRA": lambda: LoraConfig(**LORA, trainable_token_indices=TOKENS),
    "trainable tokens": lambda: TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=TOKENS),
    "IA3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LoHa": lambda: LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS),
    "VeRA": lambda: VeraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "o_proj"]),
    "AdaLoRA": lambda: AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, target_modules=TARGETS, total_step=10, tinit=1, tfinal=1
    ),
    "norms": lambda: LNTuningConfig(task_type="CAUSAL_LM"),
    "prefixes": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
TWO_COPIES = {
    "PiSSA": lambda: LoraConfig(**LORA, init_lora_weights="pissa"),
    "OLoRA": lambda: LoraConfig(**LORA, init_lora_weights="olora"),
    "all biases": lambda: LoraConfig(**LORA, bias="all"),
    "LoRA's biases": lambda: LoraConfig(**LORA, bias="lora_only"),
}
"""Those whose base is not itself any more when they are switched off."""


def llama(**changes):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings = {"vocab_size": 300, "attention_bias": True, "pad_token_id": None, "tie_word_embeddings": False}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **(shape | settings | changes)))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(llama(), TOKENIZER, folder)
    return folder


def train(model, seed=3, by=0.1):
    """Move every trainable weight a little, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
    return model


def adapter(folder, base, config, seed=3):
    """Write an adapter as PEFT does."""
    model = train(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config), seed)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def plain(base):
    return logps(AutoModelForCausalLM.from_pretrained(base))


def on_base(base, folder):
    return logps(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))


def by_product(pair):
    texts = encode_texts(TOKENIZER, TEXTS, max_length=64, vocab_size=300)
    parts = [token_statistics(part.target, part.reference, part.truth, 20) for part in forward_pair(pair, texts)]
    tokens = TokenStatistics.concatenate(parts)
    return tokens.target_logp, tokens.reference_logp


def assert_right(pair, target, reference):
    ours, theirs = by_product(pair)
    np.testing.assert_allclose(ours, target, atol=WITHIN, rtol=0)
    np.testing.assert_allclose(theirs, reference, atol=WITHIN, rtol=0)
    # Else any model would do.
    assert np.abs(target - reference).max() > 10 * WITHIN


def refused(target, base=None, **options):
    with pytest.raises(ModelError) as caught:
        load_pair(target, base, **(CPU | options))
    return str(caught.value)


@pytest.mark.parametrize("kind", ONE_COPY)
def test_kinds_that_give_their_base_back(base, tmp_path, kind):
    folder = adapter(tmp_path / "adapter", base, ONE_COPY[kind]())
    pair = load_pair(folder, **CPU)
    assert pair.reference is None
    assert pair.target_origin.remarks == pair.reference_origin.remarks == ()
    assert_right(pair, on_base(base, folder), plain(base))


@pytest.mark.parametrize("kind", TWO_COPIES)
def test_kinds_that_change_their_base_get_a_reference_of_its_own(base, tmp_path, kind):
    folder = adapter(tmp_path / "adapter", base, TWO_COPIES[kind]())
    pair = load_pair(folder, **CPU)
    assert pair.reference is not None
    assert pair.reference_origin.source == str(base)
    assert "loaded on its own" in pair.reference_origin.remarks[-1]
    assert_right(pair, on_base(base, folder), plain(base))


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda"])
def test_a_start_that_cannot_be_repeated_is_refused(base, tmp_path, start):
    folder = adapter(tmp_path / "adapter", base, ONE_COPY["LoRA"]())
    rewrite(folder / "adapter_config.json", init_lora_weights=start)
    assert f"init_lora_weights = '{start}'" in refused(folder)


def test_virtual_tokens_before_the_text_are_refused(base, tmp_path):
    folder = adapter(tmp_path / "adapter", base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "adapters that prepend virtual tokens cannot be audited" in refused(folder)


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """A plain adapter with a head of its own; tests copy it."""
    return adapter(tmp_path_factory.mktemp("adapters") / "lora", base, ONE_COPY["saved head"]())


@pytest.fixture
def spoilt(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "spoilt")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")


def in_model(name, adapter_name="sft"):
    """Return the name that a tensor of the file has in a model."""
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.", f".{part}.{adapter_name}.")
    return name.replace("lm_head.weight", f"lm_head.modules_to_save.{adapter_name}.weight")


WRAPPED = {
    "compiled outside": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled layers": lambda name: name.replace(".self_attn", "._orig_mod.self_attn"),
    "DDP": lambda name: f"module.{name}",
    "FSDP": lambda name: name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "compiled in DDP": lambda name: f"module._orig_mod.{name}",
    "another adapter name": in_model,
    "another adapter name, compiled": lambda name: f"_orig_mod.{in_model(name)}",
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_of_wrapped_models_are_read(base, lora, spoilt, how):
    rename(spoilt, WRAPPED[how])
    pair = load_pair(spoilt, **CPU)
    assert "names of a wrapped model" in pair.target_origin.remarks[0]
    assert_right(pair, on_base(base, lora), plain(base))


def test_a_missing_tensor_is_refused_by_its_name(spoilt):
    weights = load_file(spoilt / "adapter_model.safetensors")
    lost = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    weights.pop(lost)
    save_file(weights, spoilt / "adapter_model.safetensors")
    assert f"1 tensors of adapter_model.safetensors are missing, which its config asks for, the first is {lost}" in (
        refused(spoilt)
    )


def test_one_layer_of_two_is_refused(spoilt):
    weights = load_file(spoilt / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, spoilt / "adapter_model.safetensors")
    assert "6 tensors of adapter_model.safetensors are missing" in refused(spoilt)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda name: f"student.{name}", "student.base_model.model.lm_head.weight"),
        (
            lambda name: name.replace("v_proj", "w_proj"),
            "base_model.model.model.layers.0.self_attn.w_proj.lora_A.weight",
        ),
        (lambda name: name.replace("s.1.", "s.7."), "base_model.model.model.layers.7.mlp.down_proj.lora_A.weight"),
        (lambda name: name.replace("_B", "_C"), "base_model.model.model.layers.0.mlp.down_proj.lora_C.weight"),
    ],
)
def test_tensors_without_a_place_are_refused_by_their_name(spoilt, change, first):
    rename(spoilt, change)
    assert f"have no place in the base, the first is {first};" in refused(spoilt)


def test_an_adapter_of_a_base_of_another_width_is_refused(lora, tmp_path):
    save_model(llama(hidden_size=64), TOKENIZER, tmp_path / "wide")
    message = refused(lora, tmp_path / "wide")
    # All but the rank-by-feed-forward ones of two layers.
    assert "11 tensors of adapter_model.safetensors have other shapes than the base needs, size mismatch for" in message
    assert "torch.Size([4, 32])" in message
    assert message.endswith("is this the base it was trained on?")


def test_two_adapters_in_one_file_are_refused(spoilt):
    weights = load_file(spoilt / "adapter_model.safetensors")
    save_file(
        weights | {in_model(name): w.clone() for name, w in weights.items()}, spoilt / "adapter_model.safetensors"
    )
    assert "two adapters for one place" in refused(spoilt)


def test_embeddings_saved_beside_the_adapter_are_the_targets_alone(base, lora, spoilt):
    """They lie under the base's own name, and the base does not come back when the adapter is switched off."""
    weights = load_file(spoilt / "adapter_model.safetensors")
    moved = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach().clone()
    moved[299] += 1
    extra = {"base_model.model.model.embed_tokens.weight": moved}
    save_file(weights | extra, spoilt / "adapter_model.safetensors")
    pair = load_pair(spoilt, **CPU)
    assert pair.reference is not None
    assert_right(pair, on_base(base, spoilt), plain(base))


def test_an_adapter_that_was_never_trained_is_remarked(base, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), ONE_COPY["LoRA"]())
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "fresh")
    assert "was it trained?" in load_pair(tmp_path / "fresh", **CPU).target_origin.remarks[-1]


def test_settings_unknown_here_are_remarked(spoilt):
    rewrite(spoilt / "adapter_config.json", use_something_new=True, use_nothing_new=None)
    remark = load_pair(spoilt, **CPU).target_origin.remarks[0]
    assert "use_something_new" in remark
    assert "use_nothing_new" not in remark


@pytest.mark.parametrize("second", ["LoRA", "DoRA", "PiSSA"])
@pytest.mark.parametrize("named_by", ["config", "option"])
def test_an_adapter_on_an_adapter(base, lora, tmp_path, second, named_by):
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    folder = adapter(tmp_path / "second", tmp_path / "merged", (ONE_COPY | TWO_COPIES)[second](), seed=4)
    rewrite(folder / "adapter_config.json", base_model_name_or_path=str(lora) if named_by == "config" else str(base))
    pair = load_pair(folder, None if named_by == "config" else lora, **CPU)
    assert pair.reference_origin.source == str(lora)
    assert f"merged into its base {Path(base).name}" in " ".join(pair.reference_origin.remarks)
    assert_right(pair, on_base(tmp_path / "merged", folder), plain(tmp_path / "merged"))
    third = adapter(tmp_path / "third", tmp_path / "merged", ONE_COPY["LoRA"](), seed=5)
    rewrite(third / "adapter_config.json", base_model_name_or_path=str(folder))
    rewrite(folder / "adapter_config.json", base_model_name_or_path=str(lora))
    on_second = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), folder)
    two = logps(on_second)
    three = logps(PeftModel.from_pretrained(on_second.merge_and_unload(), third))
    assert_right(load_pair(third, **CPU), three, two)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "IA3", "PiSSA"])
@pytest.mark.parametrize("sequential", [False, True])
def test_an_adapter_trained_further_is_not_put_on_its_earlier_self(base, tmp_path, kind, sequential):
    first = adapter(tmp_path / "first", base, (ONE_COPY | TWO_COPIES)[kind]())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), first, is_trainable=True)
    train(model, seed=5, by=0.05).save_pretrained(tmp_path / "further", save_embedding_layers=False)
    pair = load_pair(tmp_path / "further", first, sequential=sequential, **CPU)
    assert "trained further" in pair.reference_origin.remarks[-1]
    assert_right(pair, on_base(base, tmp_path / "further"), on_base(base, first))


def test_a_second_adapter_of_the_same_seed_is_put_on_the_first(base, tmp_path):
    """Its untrained half is the first one's to the bit."""
    merged, folders = base, [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(merged), ONE_COPY["LoRA"]())
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder)
        target, merged = logps(model), tmp_path / f"merged-{seed}"
        model.merge_and_unload().save_pretrained(merged)
    assert_right(load_pair(folders[1], folders[0], **CPU), target, on_base(base, folders[0]))


def test_adapters_in_a_circle_are_refused(lora, tmp_path):
    first, second = (shutil.copytree(lora, tmp_path / name) for name in ("first", "second"))
    rewrite(first / "adapter_config.json", base_model_name_or_path=str(second))
    rewrite(second / "adapter_config.json", base_model_name_or_path=str(first))
    assert "name each other as their base" in refused(first)
    assert "cannot be put on itself" in refused(first, first)


@pytest.mark.parametrize("kind", ["LoRA", "PiSSA"])
def test_models_that_take_turns_in_memory(base, tmp_path, kind):
    folder = adapter(tmp_path / "adapter", base, (ONE_COPY | TWO_COPIES)[kind]())
    pair = load_pair(folder, sequential=True, **CPU)
    assert pair.is_sequential == (kind == "PiSSA")
    assert_right(pair, on_base(base, folder), plain(base))


@pytest.mark.parametrize("kind", TWO_COPIES)
def test_a_model_in_memory_that_does_not_give_its_base_back_needs_it(base, kind):
    model = train(get_peft_model(llama(), TWO_COPIES[kind]()))
    with pytest.raises(ModelError, match="does not give the base back: give the base as well"):
        load_pair(model, tokenizer=TOKENIZER)
    assert load_pair(model, llama(), tokenizer=TOKENIZER).reference is not None


def test_a_merged_adapter_in_memory_is_scored_as_it_is(base, lora):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
    target = logps(model)
    model.merge_adapter()
    assert_right(load_pair(model, tokenizer=TOKENIZER), target, plain(base))
