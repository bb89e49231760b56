"""One pass over batches equals a plain loop over single texts, for every kind of architecture and head."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ltmia.features.statistics import token_statistics
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.batching import MOST_TOKENS, length_batches
from ltmia.models.forward import CHUNK_BYTES, ForwardClock, forward_pair, pad_ids, scored_states
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts

TEXTS = [
    "The lamp burns low.",
    "A",
    "Crate nine of the cargo holds a letter, and a map of the coast that nobody has read for years.",
    "Ships. Ships and more ships; the harbour is full of them, and of gulls.",
    "",
    "zz",
    "The lamp burns low.",
    "Naïve café — 灯 burns.",
    "Snow on the pier.",
]
TOKENIZER = train_tokenizer(TEXTS * 3, 300)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SETTINGS = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "llama, grouped heads": ("llama", SHAPE | {"num_key_value_heads": 2}),
    "mistral, sliding window": ("mistral", SHAPE | {"num_key_value_heads": 2, "sliding_window": 8}),
    "gemma2, soft cap": ("gemma2", SHAPE | {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "cohere, scaled up": ("cohere", SHAPE | {"num_key_value_heads": 4, "logit_scale": 1.7}),
    "granite, scaled down": ("granite", SHAPE | {"num_key_value_heads": 4, "logits_scaling": 8.0}),
    "opt": ("opt", SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 128}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "phi, head with a bias": ("phi", SHAPE),
    "qwen3_moe": ("qwen3_moe", SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "recurrent_gemma": (
        "recurrent_gemma",
        SHAPE | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "logits_soft_cap": 3.0},
    ),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 128}),
}


def build(name, seed):
    model_type, settings = SETTINGS[name]
    special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=300, **special, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Logits of some size, so that a soft cap or a scale shows.
        head = model.get_output_embeddings().weight
        head.mul_(0.5 / head.std())
    return model.eval()


@pytest.fixture(scope="module")
def pairs():
    return {name: Pair(target=build(name, 1), reference=build(name, 2), tokenizer=TOKENIZER) for name in SETTINGS}


def encode(pair, texts=TEXTS):
    return encode_texts(TOKENIZER, texts, max_length=24, vocab_size=pair.vocab_size)


def plain_loop(model, encoded):
    """Log-probabilities of the true tokens, one text at a time, by definition."""
    found = []
    for text in encoded:
        if not text.n_scored:
            found.append(np.zeros(0))
            continue
        ids = torch.from_numpy(text.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double()
        found.append(logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0].numpy())
    return found


def batched(pair, encoded, batch_size):
    """The same by way of batches, per text and model."""
    found = {i: (np.zeros(0), np.zeros(0)) for i in range(len(encoded))}
    for rows in length_batches(encoded, batch_size):
        parts = [
            token_statistics(part.target, part.reference, part.truth, 5)
            for part in forward_pair(pair, [encoded[i] for i in rows])
        ]
        ends = np.cumsum([encoded[i].n_scored for i in rows])[:-1]
        both = [np.concatenate([getattr(p, f"{m}_logp") for p in parts]) for m in ("target", "reference")]
        for i, target, reference in zip(rows, *(np.split(logp, ends) for logp in both), strict=True):
            found[i] = target, reference
    return [found[i] for i in range(len(encoded))]


@pytest.mark.parametrize("name", SETTINGS)
def test_batches_equal_a_plain_loop(pairs, name):
    pair = pairs[name]
    encoded = encode(pair)
    expected = list(zip(plain_loop(pair.target, encoded), plain_loop(pair.reference, encoded), strict=True))
    for batch_size in (1, 3, 8):
        for ours, theirs in zip(batched(pair, encoded, batch_size), expected, strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = batched(pair, encode(pair, [TEXTS[i] for i in order]), 3)
    for i, ours in zip(order, shuffled, strict=True):
        np.testing.assert_allclose(ours[0], expected[i][0], atol=1e-4)


@pytest.mark.parametrize(("most", "widths"), [(10_000, [[6]]), (48, [[2], [2], [2]]), (1, [[1]] * 6)])
def test_a_large_batch_goes_in_passes_that_the_device_likes(pairs, monkeypatch, most, widths):
    pair = pairs["gpt2"]
    encoded = [text for text in encode(pair, [TEXTS[2], TEXTS[3]] * 3) if len(text.ids) == 24]
    assert len(encoded) == 6
    whole = scored_states(pair, pair.target_runner, encoded)
    seen = []
    run = pair.target_runner.hidden_states
    monkeypatch.setitem(MOST_TOKENS, "cpu", most)
    monkeypatch.setattr(
        pair.target_runner, "hidden_states", lambda ids, mask: seen.append([len(ids)]) or run(ids, mask)
    )
    torch.testing.assert_close(scored_states(pair, pair.target_runner, encoded), whole, atol=1e-5, rtol=0)
    assert seen == widths


@pytest.mark.parametrize("name", SETTINGS)
def test_heads_run_apart(pairs, name):
    assert pairs[name].target_runner.runs_head_apart
    assert pairs[name].reference_runner.runs_head_apart


def test_logits_do_not_depend_on_what_padding_holds(pairs):
    pair = pairs["gpt2"]
    encoded = [text for text in encode(pair) if text.n_scored]
    found = []
    for pad_id in (0, 7, 299):
        ids, mask = pad_ids([text.ids for text in encoded], pad_id)
        hidden = pair.target_runner.hidden_states(ids, mask)
        found.append(pair.target_runner.float32_head()(hidden[mask.bool()]).clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers(pairs):
    ids, mask = pad_ids([np.array([5, 6, 7]), np.array([8])], 3)
    assert ids.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    pair = pairs["gpt2"]
    encoded = encode(pair)
    expected = batched(pair, encoded, 8)
    TOKENIZER.padding_side = "left"
    try:
        for ours, theirs in zip(batched(pair, encode(pair), 8), expected, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
    finally:
        TOKENIZER.padding_side = "right"


def test_a_pad_token_that_the_base_does_not_know_is_not_fed_to_it():
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 300
    pair = Pair(target=build("gpt2", 1), reference=build("gpt2", 2), tokenizer=tokenizer)
    encoded = encode(pair)
    expected = plain_loop(pair.reference, encoded)
    for ours, theirs in zip(batched(pair, encoded, 8), expected, strict=True):
        np.testing.assert_allclose(ours[1], theirs, atol=1e-4)


def test_logits_come_in_chunks_of_bounded_size(pairs, monkeypatch):
    pair = pairs["llama, grouped heads"]
    monkeypatch.setattr("ltmia.models.forward.CHUNK_BYTES", 4 * 300 * 7)
    encoded = [text for text in encode(pair) if text.n_scored]
    clock = ForwardClock()
    sizes, truth = [], []
    for part in forward_pair(pair, encoded, clock):
        sizes.append(len(part.truth))
        truth.append(part.truth.clone())
    assert set(sizes[:-1]) == {7}
    assert torch.cat(truth).tolist() == [int(i) for text in encoded for i in text.ids[1:]]
    assert clock.seconds > 0
    assert CHUNK_BYTES >= 2**20
