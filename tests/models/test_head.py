"""Heads give the float32 product, whatever the weights' dtype and size; full-batch logits never exist."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models import head as heads
from ltmia.models.forward import CHUNK_BYTES, forward_pair
from ltmia.models.head import float32_head
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["as here", "sliced", "without oneDNN"])
def test_a_head_is_the_product_in_float32(monkeypatch, bias, dtype, path):
    if path == "sliced":
        monkeypatch.setattr(heads, "COPY_BYTES", 100)
        monkeypatch.setattr(heads, "SLICE_BYTES", 4 * 24 * 7)
    if path == "without oneDNN":
        monkeypatch.setattr(heads, "_has_onednn", lambda _weight: False)
    torch.manual_seed(0)
    linear = nn.Linear(24, 301, bias=bias, dtype=dtype)
    hidden = torch.randn(9, 24).to(dtype)
    apply = float32_head(linear)
    expected = hidden.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0.0)
    for rows in (9, 2, 9):
        with torch.inference_mode():
            found = apply(hidden[:rows])
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected[:rows].detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("width", [24, 25])
@pytest.mark.parametrize(
    ("states", "weights"), [("float32", "bfloat16"), ("float16", "bfloat16"), ("bfloat16", "float16")]
)
def test_states_of_another_dtype_are_not_rounded(states, weights, width):
    linear = nn.Linear(width, 301, dtype=getattr(torch, weights))
    hidden = torch.randn(9, width).to(getattr(torch, states))
    with torch.inference_mode():
        found = float32_head(linear)(hidden)
    expected = hidden.double() @ linear.weight.double().T + linear.bias.double()
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), atol=2e-6)


def test_the_logits_of_a_large_vocabulary_stay_within_the_bound():
    vocab_size = 151_936
    shape = GPT2Config(vocab_size=vocab_size, n_embd=8, n_layer=1, n_head=2, n_positions=128)
    models = [GPT2LMHeadModel(shape).eval() for _ in range(2)]
    pair = Pair(target=models[0], reference=models[1], tokenizer=train_tokenizer(["a b c"], 300))
    text = EncodedText(ids=np.arange(100))
    sizes = []
    for part in forward_pair(pair, [text, text]):
        assert part.target.untyped_storage().nbytes() <= CHUNK_BYTES
        assert part.reference.untyped_storage().nbytes() <= CHUNK_BYTES
        sizes.append(len(part.truth))
    assert sum(sizes) == 2 * 99
    assert len(sizes) == -(-2 * 99 // (CHUNK_BYTES // (4 * vocab_size)))
