"""Small models that moved away from their base, and gradients of single texts by definition."""

import numpy as np
import torch
from torch.func import functional_call

from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText

TOKENIZER = train_tokenizer(["The lamp burns low on the pier, and snow falls."] * 3, 280)


def small(model_type="llama", seed=0, n_layers=3):
    shape = TinyConfig(model_type=model_type, vocab_size=280, hidden_size=16, n_layers=n_layers, n_heads=2)
    return build_base(shape, seed=seed).eval()


def moved_pair(model_type="llama", dtype=torch.float32, n_layers=3):
    base, target = (small(model_type, n_layers=n_layers) for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return Pair(target=target.to(dtype), reference=base.to(dtype), tokenizer=TOKENIZER)


def some_texts(n=7, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, n)
    return [EncodedText(ids=rng.integers(1, 280, length), start=1 + i % 2) for i, length in enumerate(lengths)]


def by_definition(model, name, text):
    """Gradient of the mean loss of one text's scored tokens with respect to one parameter: the text alone, as it is."""
    values = {key: value.detach() for key, value in model.named_parameters()}
    weight = values[name].clone().requires_grad_()
    ids = torch.from_numpy(text.ids)
    logits = functional_call(model, values | {name: weight}, (), {"input_ids": ids[None], "use_cache": False}).logits
    logp = logits[0, text.start - 1 : -1].log_softmax(-1)
    return torch.autograd.grad(-logp.gather(1, ids[text.start :, None]).mean(), weight)[0]


def close(found, wanted):
    return float((found - wanted).norm() / wanted.norm()) < 1e-4
