"""Models with something wrong or unusual: each is scored as a plain float32 loop would, or refused with the reason."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, normalizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import save_model
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.scoring.extraction import ExtractionConfig, extract_batches
from ltmia.scoring.in_memory import score_texts

TEXTS = [
    "The lamp burns low.",
    "Crate nine of the cargo holds a letter and a map of the coast.",
    "Snow on the pier.",
    "",
]
TOKENIZER = train_tokenizer(TEXTS * 3, 300)


def small(seed=0, model_type="llama", vocab_size=300, **more):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(model_type, vocab_size=vocab_size, pad_token_id=None, **(shape | more))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    return model


def loss_by_loop(model, texts=TEXTS, n_ids=300):
    """The Loss attack by its definition, one text at a time in float32."""
    found = []
    for text in encode_texts(TOKENIZER, texts, max_length=64, vocab_size=300):
        if text.reason:
            found.append(np.nan)
            continue
        ids = torch.from_numpy(text.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1, :n_ids].double()
        found.append(float(logits.log_softmax(-1).gather(1, ids[1:, None]).mean()))
    return np.array(found)


def assert_equals_loop(pair, target, reference, n_ids=300):
    scores = score_texts(pair, TEXTS, attacks="loss,difference", max_length=64)
    ours, theirs = (loss_by_loop(model, n_ids=n_ids) for model in (target, reference))
    np.testing.assert_allclose(scores["loss"], ours, atol=1e-4)
    np.testing.assert_allclose(scores["difference"], ours - theirs, atol=1e-4)


def reasons(pair):
    found = {}
    for batch in extract_batches(pair, TEXTS, ExtractionConfig(attacks=("loss",), max_length=64)):
        found |= {text.row: text.reason for text in batch.texts}
    return [found[i] for i in range(len(TEXTS))]


@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True)])
def test_tied_and_untied_heads(tied, tmp_path):
    for name, seed, tie in zip(("target", "base"), (1, 2), tied, strict=True):
        save_model(small(seed, tie_word_embeddings=tie), TOKENIZER, tmp_path / name)
    pair = load_pair(tmp_path / "target", tmp_path / "base", dtype="float32", device="cpu")
    target, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("target", "base"))
    assert_equals_loop(pair, target, reference)


@pytest.mark.parametrize("padded", [320, 384])
def test_a_vocabulary_padded_to_a_round_number(padded):
    target, reference = small(1, vocab_size=padded), small(2)
    assert_equals_loop(Pair(target=target, reference=reference, tokenizer=TOKENIZER), target, reference)
    both = small(1, vocab_size=padded), small(2, vocab_size=padded)
    assert_equals_loop(Pair(target=both[0], reference=both[1], tokenizer=TOKENIZER), *both, n_ids=padded)


class Heedless(nn.Module):
    """A model that ignores the attention mask, as those with recurrent states do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, **_more):
        return self.inner(input_ids=input_ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_that_ignores_the_attention_mask(kind):
    shape = TinyConfig(model_type=kind, vocab_size=300, hidden_size=32, n_layers=2, n_heads=2)
    target, reference = build_base(shape, seed=1).eval(), build_base(shape, seed=2).eval()
    pair = Pair(target=Heedless(target), reference=Heedless(reference), tokenizer=TOKENIZER)
    assert_equals_loop(pair, target, reference)


class Sociable(Heedless):
    """A model whose logits depend on the texts beside, or on the padding behind."""

    def __init__(self, inner, spill):
        super().__init__(inner)
        self.spill = spill

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, **_more):
        logits = self.inner(input_ids=input_ids).logits
        return CausalLMOutput(logits=logits + self.spill(input_ids))


@pytest.mark.parametrize("spill", [lambda ids: 0.1 * ids.shape[1], lambda ids: ids[0, 0] + 0.1 * len(ids)])
def test_a_model_that_minds_its_batch_is_refused(spill):
    with pytest.raises(ModelError, match="would depend on the batch"):
        Pair(target=Sociable(small(1), spill), reference=small(2), tokenizer=TOKENIZER)


def test_the_rounding_of_many_layers_in_half_precision_is_not_taken_for_a_minded_batch():
    shape = TinyConfig(model_type="gpt2", vocab_size=20_000, hidden_size=256, n_layers=24, n_heads=4)
    target, reference = (build_base(shape, seed=seed).eval().bfloat16() for seed in (1, 2))
    Pair(target=target, reference=reference, tokenizer=TOKENIZER)


@pytest.mark.parametrize("window", [2, 8])
def test_sliding_windows_shorter_than_the_texts(window):
    target, reference = (small(seed, "mistral", sliding_window=window, num_key_value_heads=2) for seed in (1, 2))
    assert_equals_loop(Pair(target=target, reference=reference, tokenizer=TOKENIZER), target, reference)


def test_half_precision_that_overflows_is_told_and_float32_is_the_cure():
    target, reference = small(1), small(2)
    with torch.no_grad():
        for layer in target.model.layers:
            layer.mlp.up_proj.weight.mul_(3e4)
            layer.mlp.gate_proj.weight.mul_(3e4)
    half = Pair(target=target.half(), reference=reference, tokenizer=TOKENIZER)
    assert set(reasons(half)[:3]) == {"the target gives NaN logits on it"}
    assert np.isnan(score_texts(half, TEXTS, attacks="loss")["loss"]).all()
    wide = Pair(target=target.float(), reference=reference, tokenizer=TOKENIZER)
    assert reasons(wide)[:3] == [None] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_broken_weights_are_told_text_by_text(name, value):
    target = small(1)
    with torch.no_grad():
        target.get_parameter(name).fill_(value)
    found = reasons(Pair(target=target, reference=small(2), tokenizer=TOKENIZER))
    assert set(found[:3]) == {"the target gives NaN logits on it"}


def test_one_broken_embedding_spoils_the_texts_that_hold_it_only():
    target, reference = small(1, tie_word_embeddings=False), small(2)
    encoded = encode_texts(TOKENIZER, TEXTS, max_length=64, vocab_size=300)
    only_there = set(encoded[1].ids.tolist()) - set(encoded[0].ids.tolist()) - set(encoded[2].ids.tolist())
    with torch.no_grad():
        target.model.embed_tokens.weight[sorted(only_there)[0]] = float("nan")
    pair = Pair(target=target, reference=reference, tokenizer=TOKENIZER)
    found = reasons(pair)
    assert (found[0], found[2]) == (None, None)
    assert found[1] == "the target gives NaN logits on it"
    np.testing.assert_allclose(
        score_texts(pair, TEXTS, attacks="loss")["loss"][[0, 2]], loss_by_loop(target)[[0, 2]], atol=1e-4
    )


class Shaped(nn.Module):
    """A model whose logits have a wrong shape."""

    def __init__(self, inner, shape):
        super().__init__()
        self.inner, self.shape, self.config = inner, shape, inner.config

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, **_more):
        return CausalLMOutput(logits=self.shape(self.inner(input_ids=input_ids).logits))


@pytest.mark.parametrize(
    "shape",
    [lambda x: x[:, 1:], lambda x: x[:, -1], lambda x: x[0], lambda x: x[..., None], lambda x: x.transpose(1, 2)],
)
def test_logits_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ModelError, match="one row per id"):
        Pair(target=Shaped(small(1), shape), reference=small(2), tokenizer=TOKENIZER)


def test_a_model_without_logits_is_refused():
    with pytest.raises(ModelError, match="does not run on token ids"):
        Pair(target=Shaped(small(1), lambda _x: None), reference=small(2), tokenizer=TOKENIZER)


def test_a_tokenizer_that_maps_every_text_to_nothing():
    nothing = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    nothing.normalizer = normalizers.Replace("", "")
    pair = Pair(
        target=small(1), reference=small(2), tokenizer=PreTrainedTokenizerFast(tokenizer_object=nothing, eos_token="a")
    )
    found = reasons(pair)
    assert all(reason and "too few to score" in reason for reason in found if reason)
    assert any(found)


def test_an_adapter_with_a_token_of_its_own(tmp_path):
    """Its embeddings are larger than the base's: refused, with both sizes; merged into a folder of its own it works."""
    base = small(1)
    save_model(base, TOKENIZER, tmp_path / "base")
    grown = train_tokenizer(TEXTS * 3, 300)
    grown.add_tokens(["<patient>"])
    base.resize_token_embeddings(301)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    adapted = get_peft_model(base, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_model(adapted, grown, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"size mismatch.*301.*300"):
        load_pair(tmp_path / "adapter", dtype="float32", device="cpu")
    merged = adapted.merge_and_unload()
    save_model(merged, grown, tmp_path / "merged")
    pair = load_pair(tmp_path / "merged", tmp_path / "base", dtype="float32", device="cpu")
    assert pair.vocab_size == 300
    target, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("merged", "base"))
    assert_equals_loop(pair, target, reference)
