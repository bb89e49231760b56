"""GGUF files of every common kind of block, written here, against the float32 model that the blocks stand for."""

import json

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.gguf.dequant import dequantize

from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.training import save_model
from ltmia.models.loading import LoadOptions, load_model, load_pair
from ltmia.scoring.in_memory import score_texts
from plain_loops import TEXTS, TOKENIZER, logps, refused

KIND = gguf.GGMLQuantizationType
HEADS, KEY_HEADS, WIDTH = 4, 2, 256
"""K blocks hold 256 weights of one row."""
HALVES = {KIND.Q2_K: (80, 82), KIND.Q3_K: (108,), KIND.Q4_K: (0, 2), KIND.Q5_K: (0, 2), KIND.Q6_K: (208,)}
"""Bytes at which the float16 scales of a K block begin."""
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def small(seed=1):
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5,
        bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def packed(weight, kind, rng):
    """Return a matrix as blocks, and the float32 numbers that these blocks stand for by another implementation."""
    if kind in HALVES:
        _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (len(weight), weight.shape[1] // 256, n_bytes), np.uint8)
        for start in HALVES[kind]:
            scales = rng.uniform(1e-4, 3e-4, blocks.shape[:2]).astype(np.float16)
            blocks[..., start : start + 2] = scales[..., None].view(np.uint8)
        data = blocks.reshape(len(weight), -1)
    else:
        data = gguf.quants.quantize(weight.numpy(), kind)
    return data, unpacked(data, kind).reshape(weight.shape)


def unpacked(data, kind):
    bytes_ = torch.from_numpy(np.ascontiguousarray(data).view(np.uint8))
    if kind in (KIND.Q5_0, KIND.Q5_1):
        return five_bits(data.reshape(-1, 22 if kind is KIND.Q5_0 else 24), kind)
    if kind in (KIND.F16, KIND.BF16):
        return bytes_.view(torch.float16 if kind is KIND.F16 else torch.bfloat16).float()
    if kind is KIND.F32:
        return torch.from_numpy(data)
    return dequantize(bytes_, int(kind))


def five_bits(blocks, kind):
    """Blocks of 32 weights: scale, offset of Q5_1, their fifth bits, their lower four bits, halves side by side."""
    head = 2 if kind is KIND.Q5_0 else 4
    numbers = blocks[:, :head].copy().view(np.float16).astype(np.float32)
    fifth = np.unpackbits(blocks[:, head : head + 4], axis=1, bitorder="little")
    nibbles = np.concatenate([blocks[:, head + 4 :] & 15, blocks[:, head + 4 :] >> 4], axis=1)
    levels = (nibbles + 16 * fifth).astype(np.float32)
    offset = -16 * numbers[:, :1] if kind is KIND.Q5_0 else numbers[:, 1:]
    return torch.from_numpy(levels * numbers[:, :1] + offset)


def rotated(weight, heads):
    """Rows of queries and keys in the order of GGUF: the two halves of each head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def turned_back(weight, heads):
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, kind=KIND.F32, *, leave_out=(), extra=(), scaling=None):
    """Write a model as a GGUF file, and give it the weights that the file stands for."""
    rng, writer, config = np.random.default_rng(0), gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    tokens = TOKENIZER.convert_ids_to_tokens(range(300))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 300)
    merges = [" ".join(pair) for pair in json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
        stored = weight if heads is None else rotated(weight, heads)
        data, meant = packed(stored, kind, rng) if weight.ndim == 2 else packed(stored, KIND.F32, rng)
        weight.copy_(meant if heads is None else turned_back(meant, heads))
        theirs = name
        for ours, other in NAMES.items():
            theirs = theirs.replace(ours, other)
        if theirs not in leave_out:
            writer.add_tensor(theirs, data, raw_dtype=kind if weight.ndim == 2 else KIND.F32)
    for name in extra:
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_every_kind_of_block(tmp_path, kind, dtype):
    expected = write(tmp_path / "model.gguf", small(), KIND[kind])
    model, origin = load_model(str(tmp_path / "model.gguf"), LoadOptions(dtype=dtype, device="cpu"))
    assert origin.remarks == ()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    np.testing.assert_allclose(logps(model), logps(expected), atol=1e-4)


def test_a_pair_of_files_with_a_suffix_in_capitals_is_scored_and_saved(tmp_path):
    target, base = (write(tmp_path / name, small(seed), KIND.Q8_0) for name, seed in (("T.GGUF", 1), ("B.GGUF", 2)))
    pair = load_pair(tmp_path / "T.GGUF", tmp_path / "B.GGUF", dtype="auto", device="cpu")
    assert pair.tokenizer(TEXTS)["input_ids"] == TOKENIZER(TEXTS)["input_ids"]
    found = score_texts(pair, TEXTS, attacks="difference")["difference"]
    expected = [(logps(target, [text]) - logps(base, [text])).mean() for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    save_model(pair.target, TOKENIZER, tmp_path / "again")
    model, _ = load_model(str(tmp_path / "again"), LoadOptions(dtype="float32", device="cpu"))
    np.testing.assert_allclose(logps(model), logps(target), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"leave_out": ["blk.0.ffn_up.weight"]}, "not in its files, first model.layers.0.mlp.up_proj.weight"),
        ({"extra": ["rope_freqs.weight"]}, "leaves out rope_freqs.weight (factors on its rotary positions"),
        ({"extra": ["blk.0.attn_q.bias"]}, "leaves out blk.0.attn_q.bias (a part of the model"),
        ({"scaling": gguf.RopeScalingType.YARN}, "scales positions (yarn)"),
    ],
)
def test_what_a_file_holds_and_the_model_does_not_is_refused(tmp_path, options, expected):
    write(tmp_path / "model.gguf", small(), **options)
    assert expected in refused(tmp_path / "model.gguf")


def test_an_adapter_of_a_gguf_file_names_the_file(tmp_path, capfd):
    model = small()
    write(tmp_path / "base.gguf", model)
    base, _ = load_model(str(tmp_path / "base.gguf"), LoadOptions(dtype="float32", device="cpu"))
    assert "Converting" not in capfd.readouterr().err
    tuned = add_lora(base, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_model(tuned, TOKENIZER, tmp_path / "adapter")
    pair = load_pair(tmp_path / "adapter", dtype="float32", device="cpu")
    assert pair.reference_origin.source == str(tmp_path / "base.gguf")
    oracle = PeftModel.from_pretrained(model, tmp_path / "adapter")
    scores = score_texts(pair, TEXTS[:1], attacks="loss")["loss"]
    np.testing.assert_allclose(scores, [logps(oracle, TEXTS[:1]).mean()], atol=1e-4)
