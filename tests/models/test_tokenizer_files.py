"""Tokenizers of target and base: the same ids, reserved tokens renamed, files of the future."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import save_model
from ltmia.models.loading import LoadOptions, load_pair, load_tokenizer
from ltmia.scoring.in_memory import score_texts
from plain_loops import TEXTS, TOKENIZER, logps


def small(seed):
    shape = TinyConfig(model_type="llama", vocab_size=310, hidden_size=32, n_layers=2, n_heads=2)
    return build_base(shape, seed=seed).eval()


def with_tokens(*names, special=True):
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    return tokenizer


def pair_of(folder, target, base, **options):
    for name, tokenizer, seed in (("target", target, 1), ("base", base, 2)):
        save_model(small(seed), tokenizer, folder / name)
    return load_pair(folder / "target", folder / "base", dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("special", [True, False])
def test_a_chat_fine_tune_may_rename_reserved_tokens_and_that_is_said(tmp_path, special, sequential):
    ours = with_tokens("<|im_start|>", "<|im_end|>", special=special)
    theirs = with_tokens("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", special=special)
    pair = pair_of(tmp_path, ours, theirs, sequential=sequential)
    (remark,) = pair.target_origin.remarks
    assert remark.startswith("2 special or reserved token(s) bear another name than in the base, first id 300: ")
    assert "'<|im_start|>' instead of '<|reserved_special_token_0|>'" in remark
    assert pair.reference_origin.remarks == ()
    text = "<|im_start|>The lamp burns low.<|im_end|>"
    assert {300, 301} <= set(pair.tokenizer(text)["input_ids"])
    found = score_texts(pair, [text, *TEXTS], attacks="difference")["difference"]
    assert np.isfinite(found[0])
    expected = [(logps(small(1), [t]) - logps(small(2), [t])).mean() for t in TEXTS]
    np.testing.assert_allclose(found[1:], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["<unused7>", "[control_8]", "<|dummy_3|>", "<extra_id_0>", "[UNUSED_TOKEN_1]"])
def test_a_reserved_token_in_the_middle_of_the_vocabulary_may_be_renamed(tmp_path, name):
    place = 280
    ours, theirs = (renamed(place, token) for token in ("<|im_start|>", name))
    ours.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    (remark,) = pair_of(tmp_path, ours, theirs).target_origin.remarks
    assert f"first id {place}: '<|im_start|>' instead of {name!r}" in remark


def renamed(index, token):
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    gone = next(name for name, place in vocabulary.items() if place == index)
    del vocabulary[gone]
    vocabulary[token] = index
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if gone not in ("".join(pair), *pair)]
    return type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(content)), eos_token="<|endoftext|>"
    )


@pytest.mark.parametrize(("ours", "theirs"), [("lamp", "<unused7>"), ("<unused7>", "lamp"), ("lamp", "snow")])
def test_an_ordinary_token_under_another_name_is_refused(tmp_path, ours, theirs):
    with pytest.raises(ModelError, match=f"id 280 is {ours!r} for the target and {theirs!r} for the base"):
        pair_of(tmp_path, renamed(280, ours), renamed(280, theirs))


@pytest.mark.parametrize(
    "change",
    [{"version": "2.0"}, {"model": {"type": "Tomorrow", "vocab": {}}}, {"pre_tokenizer": {"type": "Tomorrow"}}],
)
def test_a_tokenizer_of_a_newer_version_is_refused_with_the_cure(tmp_path, change):
    TOKENIZER.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"newer version \(pip install --upgrade tokenizers") as caught:
        load_tokenizer(str(tmp_path), LoadOptions())
    assert str(caught.value).startswith(f"{tmp_path}: tokenizer.json is not understood by tokenizers 0.")
