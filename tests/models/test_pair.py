"""Two models side by side: heads in float32, adapters over one copy of the weights, unequal vocabularies."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.batching import length_batches
from ltmia.models.forward import forward_pair
from ltmia.models.identity import parameters_sha256
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.tokens import encode_texts
from ltmia.scoring.extraction import ExtractionConfig, extract_batches

TEXTS = [
    "The lamp burns low.",
    "Crate nine of the cargo holds a letter and a map.",
    "Ships. Ships and more ships; the harbour is full of them.",
    "Snow on the pier.",
]
TOKENIZER = train_tokenizer(TEXTS * 3, 300)


def small(seed=0, model_type="llama", vocab_size=300, dtype=torch.float32):
    shape = TinyConfig(model_type=model_type, vocab_size=vocab_size, hidden_size=32, n_layers=2, n_heads=2)
    return build_base(shape, seed=seed).to(dtype).eval()


def make_pair(target, reference=None, tokenizer=TOKENIZER):
    return Pair(target=target, reference=reference, tokenizer=tokenizer)


def with_lora(base, targets, *, seed=0, train_head=False):
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=targets, modules_to_save=["lm_head"] if train_head else None
    )
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return adapted.eval()


def logp_of(pair, texts=TEXTS):
    """Log-probabilities of the true tokens of all texts end to end, target and reference."""
    encoded = encode_texts(TOKENIZER, texts, max_length=24, vocab_size=pair.vocab_size)
    found = {}
    for rows in length_batches(encoded, 2):
        parts = [torch.stack([logp(p.target, p.truth), logp(p.reference, p.truth)]) for p in
                 forward_pair(pair, [encoded[i] for i in rows])]  # fmt: skip
        for i, part in zip(rows, torch.cat(parts, 1).split([encoded[i].n_scored for i in rows], 1), strict=True):
            found[i] = part
    return torch.cat([found[i] for i in sorted(found)], 1).numpy()


def logp(logits, truth):
    return logits.double().log_softmax(-1).gather(1, truth[:, None])[:, 0]


def by_loop(model, texts=TEXTS, n_ids=None):
    found = []
    for text in encode_texts(TOKENIZER, texts, max_length=24, vocab_size=300):
        ids = torch.from_numpy(text.ids)
        with torch.no_grad():
            found.append(logp(model(input_ids=ids[None]).logits[0][:-1, :n_ids], ids[1:]))
    return torch.cat(found).numpy()


class Odd(nn.Module):
    """A causal LM with something of its own behind the head."""

    def __init__(self, inner, after):
        super().__init__()
        self.inner, self.after, self.config = inner, after, inner.config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache).logits
        return CausalLMOutput(logits=self.after(logits))


class Headless(Odd):
    def get_output_embeddings(self):
        return None


AFTER = {
    "cube": lambda x: x + x**3,
    "a cap the config does not tell": lambda x: torch.tanh(x / 20) * 20,
    "per-id bias": lambda x: x + torch.linspace(-1, 1, x.shape[-1]),
    "masked row": lambda x: x.index_fill(-1, torch.tensor([299]), float("-inf")),
}


@pytest.mark.parametrize("after", AFTER)
def test_a_model_that_does_anything_else_after_its_head_is_run_whole(after):
    target = Odd(small(1), AFTER[after])
    pair = make_pair(target, small(2))
    assert not pair.target_runner.runs_head_apart
    assert pair.reference_runner.runs_head_apart
    found = logp_of(pair)
    np.testing.assert_allclose(found[0], by_loop(target), atol=1e-4)
    np.testing.assert_allclose(found[1], by_loop(pair.reference), atol=1e-4)


def test_a_model_without_a_head_is_run_whole():
    target = Headless(small(1), lambda x: x)
    pair = make_pair(target, small(2))
    assert not pair.target_runner.runs_head_apart
    np.testing.assert_allclose(logp_of(pair)[0], by_loop(target), atol=1e-4)


@pytest.mark.parametrize("factor", [0.01, 0.99, 1.01, -2.0, 40.0])
def test_any_constant_factor_on_the_logits_is_found(factor):
    target = Odd(small(1), lambda x: x * factor)
    scorer = make_pair(target, small(2)).target_runner
    assert scorer.runs_head_apart
    np.testing.assert_allclose(logp_of(make_pair(target, small(2)))[0], by_loop(target), atol=1e-4)


def test_a_soft_cap_is_found_even_where_logits_are_small():
    """With logits near 0 a cap looks like nothing at all; texts with larger logits would then be wrong."""
    config = AutoConfig.for_model(
        "gemma2", vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, pad_token_id=None, final_logit_softcapping=30.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    scorer = make_pair(model, small(2)).target_runner
    assert scorer.runs_head_apart
    with torch.no_grad():
        model.model.norm.weight.fill_(200.0)
    np.testing.assert_allclose(logp_of(make_pair(model, small(2)))[0], by_loop(model), atol=1e-4)
    ids = torch.tensor([[5, 6, 7]])
    capped = scorer.float32_head()(scorer.hidden_states(ids, torch.ones_like(ids)))
    np.testing.assert_allclose(capped, model(input_ids=ids).logits.detach(), atol=1e-3)


@pytest.mark.parametrize("head", ["plain", "with an adapter"])
def test_logits_of_a_bfloat16_model_are_float32_without_ties(head):
    model = small(1, vocab_size=8000, dtype=torch.bfloat16)
    adapted = with_lora(model, ["q_proj", "lm_head"]) if head == "with an adapter" else model
    scorer = make_pair(adapted, small(2, vocab_size=8000)).target_runner
    assert scorer.runs_head_apart
    ids = torch.arange(300)[None, :16]
    logits = scorer.float32_head()(scorer.hidden_states(ids, torch.ones_like(ids))[0])
    assert logits.dtype == torch.float32
    distinct = [len(row.unique()) for row in logits]
    own = [len(row.unique()) for row in adapted(input_ids=ids).logits[0]]
    assert min(distinct) > 7900
    assert max(own) < 4000
    assert (logits - adapted(input_ids=ids).logits[0].float()).abs().max() < 0.02 * logits.abs().max()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_an_adapter_and_its_base_share_one_copy_of_the_weights(targets):
    base, untouched = small(1), small(1)
    places = {parameter.data_ptr() for parameter in base.parameters()}
    pair = make_pair(with_lora(base, targets))
    assert pair.target_runner.runs_head_apart
    assert pair.reference_runner.runs_head_apart
    assert places <= {parameter.data_ptr() for parameter in pair.target.parameters()}
    target, reference = logp_of(pair)
    np.testing.assert_allclose(reference, by_loop(untouched), atol=1e-5)
    np.testing.assert_allclose(target, by_loop(pair.target), atol=1e-4)
    assert np.abs(target - reference).max() > 0.01


def test_a_head_trained_in_full_beside_an_adapter_is_switched_off_for_the_reference():
    untouched = small(1)
    pair = make_pair(with_lora(small(1), ["q_proj"], train_head=True))
    target, reference = logp_of(pair)
    np.testing.assert_allclose(reference, by_loop(untouched), atol=1e-5)
    np.testing.assert_allclose(target, by_loop(pair.target), atol=1e-4)
    assert np.abs(target - reference).max() > 0.01


def test_a_grown_vocabulary_is_compared_on_the_shared_ids():
    pair = make_pair(small(1, vocab_size=364), small(2))
    assert pair.vocab_size == 300
    target, reference = logp_of(pair)
    np.testing.assert_allclose(target, by_loop(pair.target, n_ids=300), atol=1e-4)
    np.testing.assert_allclose(reference, by_loop(pair.reference), atol=1e-4)


def test_a_text_with_a_token_unknown_to_the_base_is_unscorable_and_its_neighbours_are_not():
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.add_tokens(["<patient>"])
    pair = make_pair(small(1, vocab_size=364), small(2), tokenizer)
    texts = ["The <patient> burns low.", *TEXTS]
    reasons, scores = reasons_and_scores(pair, texts)
    assert reasons[0] == "a token is unknown to one of the two models"
    assert np.isnan(scores[0])
    assert reasons[1:] == [None] * 4
    np.testing.assert_array_equal(scores[1:], reasons_and_scores(pair, TEXTS)[1])


def reasons_and_scores(pair, texts):
    config = ExtractionConfig(attacks=("loss",), k=5, max_length=24, batch_size=2)
    found = {t.row: t for batch in extract_batches(pair, texts, config) for t in batch.texts}
    assert sorted(found) == list(range(len(texts)))
    return [found[i].reason for i in range(len(texts))], np.array([found[i].scores["loss"] for i in range(len(texts))])


@pytest.mark.parametrize("which", ["target", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_make_every_text_unscorable_with_the_reason(which, value):
    models = {"target": small(1), "reference": small(2)}
    with torch.no_grad():
        models[which].model.layers[0].mlp.down_proj.weight[0, 0] = value
    reasons, scores = reasons_and_scores(make_pair(**models), TEXTS)
    assert reasons == [f"the {which} gives NaN logits on it"] * len(TEXTS)
    assert np.isnan(scores).all()


def test_a_masked_vocabulary_row_leaves_every_score_finite():
    target = small(1, "phi")
    with torch.no_grad():
        target.get_output_embeddings().bias[299] = float("-inf")
    pair = make_pair(target, small(2))
    assert pair.target_runner.runs_head_apart
    reasons, scores = reasons_and_scores(pair, TEXTS)
    assert reasons == [None] * len(TEXTS)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(logp_of(pair)[0], by_loop(target), atol=1e-4)


HOSTILE = [
    "",
    "a",
    "The lamp. " * 10_000,
    "lamp \ud800\udfff low",
    "nul \x00 nul",
    *TEXTS[:2],
    *TEXTS[:2],
    "\n",
    "灯" * 50,
]


def test_hostile_texts_keep_their_rows():
    pair = make_pair(small(1), small(2))
    reasons, scores = reasons_and_scores(pair, HOSTILE)
    assert [i for i, reason in enumerate(reasons) if reason] == [0, 1, 9]
    assert np.isnan(scores[[0, 1, 9]]).all()
    assert np.isfinite(np.delete(scores, [0, 1, 9])).all()
    np.testing.assert_array_equal(scores[5:7], scores[7:9])
    alone = [reasons_and_scores(pair, [text])[1][0] for text in HOSTILE]
    np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_refusals_name_the_cure():
    with pytest.raises(ModelError, match="needs a reference: give the base model, or a PEFT model"):
        make_pair(small(1))
    with pytest.raises(ModelError, match="Linear: not a causal LM"):
        make_pair(nn.Linear(3, 3), small(1))


def test_a_model_that_looks_ahead_is_refused():
    settings = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **settings, intermediate_size=64)
    with pytest.raises(ModelError, match="change with the token after it, so this is not a causal LM"):
        make_pair(AutoModelForCausalLM.from_config(config).eval(), small(2))


def test_virtual_tokens_are_refused():
    adapted = get_peft_model(small(1), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"logits of shape \(1, 7, 300\).*virtual tokens"):
        make_pair(adapted)


def test_a_model_that_needs_more_than_ids_is_refused():
    class Needy(Odd):
        def forward(self, pixels, **ids):
            return self.inner(pixels, **ids)

    with pytest.raises(ModelError, match=r"does not run on token ids and a mask alone.*pixels"):
        make_pair(Needy(small(1), None), small(2))


def test_a_scorer_leaves_no_hook_behind():
    model = small(1)
    scorer = ModelRunner(lambda: model, torch.no_grad)
    scorer.hidden_states(torch.tensor([[1, 2]]), torch.ones(1, 2).long())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_longest_input_is_the_smaller_of_both():
    pair = make_pair(small(1, "mpt"), small(2, "rwkv"))
    assert pair.max_positions == 512
    assert make_pair(small(1, "mamba"), small(2, "bloom")).max_positions is None


def test_the_hash_tells_weights_apart_and_nothing_else():
    assert parameters_sha256(small(1)) == parameters_sha256(small(1))
    assert parameters_sha256(small(1)) != parameters_sha256(small(2))
