"""The doctor names what stands between a pair and an audit."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ltmia.auditing.doctor import SAMPLE, diagnose, diagnose_pair
from ltmia.errors import ConfigError
from ltmia.finetuning.perturbed import move_weights
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import save_model
from ltmia.models.forward import CHUNK_BYTES
from ltmia.models.pair import Pair

TOKENIZER = train_tokenizer(SAMPLE, 300)


def small(seed=0, model_type="llama", vocab_size=300):
    shape = TinyConfig(model_type=model_type, vocab_size=vocab_size, hidden_size=32, n_layers=2, n_heads=2)
    return build_base(shape, seed=seed)


def moved(by, **kind):
    model = small(1, **kind)
    move_weights(model, by)
    return model


def of(target, reference=None, tokenizer=TOKENIZER):
    return diagnose_pair(Pair(target=target, reference=reference, tokenizer=tokenizer))


def said(diagnosis, level):
    return " | ".join(f"{f.sentence} ({f.cure})" for f in diagnosis.findings if f.level == level)


def test_a_sound_pair_has_no_warning_and_its_cost_is_measured(tmp_path):
    save_model(small(1), TOKENIZER, tmp_path / "base")
    save_model(moved(0.02), TOKENIZER, tmp_path / "target")
    found = diagnose(tmp_path / "target", tmp_path / "base", dtype="float32", device="cpu")
    assert found.usable
    assert {f.level for f in found.findings} == {"ok"}
    n_parameters = sum(p.numel() for p in small(1).parameters())
    assert f"target: {tmp_path / 'target'}: llama, {n_parameters:,} parameters, float32 on cpu" in said(found, "ok")
    assert "both models know the same 300 ids" in said(found, "ok")
    assert "its weights changed by 1.6" in said(found, "ok")  # E|x| = 0.8 of a normal x
    assert found.memory_bytes == 2 * 4 * n_parameters + 2 * CHUNK_BYTES
    assert 0 < found.seconds_per_1000_texts < 1000


def test_what_cannot_be_loaded_is_a_problem_with_its_cure(tmp_path):
    found = diagnose(tmp_path / "gone", tmp_path / "base")
    assert not found.usable
    assert "there is nothing there; expected a folder" in said(found, "problem")
    assert found.seconds_per_1000_texts is None
    save_model(small(1), TOKENIZER, tmp_path / "target")
    assert "name that one with `base`" in said(diagnose(tmp_path / "target"), "problem")
    with pytest.raises(ConfigError, match="`dtype=int3`"):
        diagnose(tmp_path / "target", tmp_path / "target", dtype="int3", device="cpu")


def test_the_same_model_twice_is_a_warning():
    assert "Target and base are the same model" in said(of(small(1), small(1)), "warning")


def test_an_adapter_is_found_and_an_untrained_one_warned_of():
    adapted = get_peft_model(small(1), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    found = of(adapted)
    assert "one copy of the weights serves both" in said(found, "ok")
    assert "Check that the base is right" in said(found, "warning")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    assert "was fine-tuned from the given base" in said(of(adapted), "ok")
    assert said(of(adapted), "warning") == ""


def test_a_wrong_base_is_warned_of():
    assert "more than fine-tuning does" in said(of(small(1), small(2)), "warning")
    assert "another kind of model" in said(of(small(1), small(2, "gpt2")), "warning")
    assert "name the right one" in said(of(small(1), small(2)), "warning")


def test_tokens_that_the_base_does_not_know_are_named():
    tokenizer = train_tokenizer(SAMPLE, 300)
    tokenizer.add_tokens(["<patient>", "<ward>"])
    found = of(moved(0.02, vocab_size=364), small(1), tokenizer)
    assert found.usable
    assert "the target knows 364 ids and the base 300: compared on 300 shared ids" in said(found, "ok")
    assert "2 token(s) are unknown to one model ('<patient>', '<ward>')" in said(found, "warning")


@pytest.mark.parametrize("which", ["target", "reference"])
def test_broken_weights_are_a_problem(which):
    models = {"target": moved(0.02), "reference": small(1)}
    with torch.no_grad():
        models[which].model.embed_tokens.weight.fill_(float("nan"))
    found = of(**models)
    assert not found.usable
    assert f"the {which} gives NaN logits on plain English" in said(found, "problem")


def test_a_tokenizer_that_gives_nothing_is_a_problem():
    tokenizer = train_tokenizer(SAMPLE, 300)
    tokenizer.add_tokens(list(SAMPLE))
    found = of(moved(0.02, vocab_size=364), small(1, vocab_size=364), tokenizer)
    assert "plain English sentences give 1 token(s): too few to score" in said(found, "problem")


def test_a_vocabulary_too_small_for_the_features_is_a_problem():
    found = of(small(1, vocab_size=19), small(2, vocab_size=300))
    assert "19 shared ids are fewer than the 20 needed" in said(found, "problem")


def test_half_precision_is_told():
    found = of(moved(0.02).to(torch.bfloat16), small(1))
    assert "they differ by rounding" in said(found, "warning")
    head = 4 * 300 * 32
    weights = 6 * sum(p.numel() for p in small(1).parameters())
    assert found.memory_bytes == weights + head + 2 * CHUNK_BYTES
