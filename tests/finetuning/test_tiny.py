"""Tiny bases: the table of architectures, their tokenizer, pretraining that survives a kill."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ltmia.errors import ConfigError, DataError, StoreError
from ltmia.finetuning import training
from ltmia.finetuning.perturbed import move_weights
from ltmia.finetuning.pretraining import PretrainConfig, pack_blocks, pretrain
from ltmia.finetuning.tiny import (
    ARCHITECTURES,
    END_ID,
    END_OF_TEXT,
    TinyConfig,
    build_base,
    train_tokenizer,
)
from ltmia.folders import write_folder
from ltmia.ownership import Marker

TEXTS = [f"The {i} ships of the fleet sailed {i * 7} miles past the cape of storms." for i in range(60)]
TOKENIZER = train_tokenizer(TEXTS, 300)


def small(model_type, seed=0):
    shape = TinyConfig(model_type=model_type, vocab_size=300, hidden_size=32, n_layers=3, n_heads=2)
    if 32 % (2 * ARCHITECTURES[model_type].head_multiple):
        raise AssertionError("the test's own shape must be possible")
    return build_base(shape, seed=seed)


def logits(model, ids, mask):
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_learns_ignores_padding_and_round_trips(model_type, tmp_path):
    model = small(model_type)
    ids = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    plain = logits(model, ids, mask)
    assert plain.shape == (2, 12, 300)

    padded = torch.cat([ids, torch.full((2, 5), END_ID)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(logits(model, padded, padded_mask)[:, :12], plain, atol=1e-5, rtol=1e-5)
    later = ids.clone()
    later[:, 8:] = 7
    torch.testing.assert_close(logits(model, later, mask)[:, :8], plain[:, :8], atol=1e-5, rtol=1e-5)

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    torch.testing.assert_close(logits(again, ids, mask), plain, atol=1e-6, rtol=1e-6)

    model.train()(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_same_seed_same_weights_and_the_callers_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, third = small("gpt2", 1), small("gpt2", 1), small("gpt2", 2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(m.parameters()) for m in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_unknown_architecture_names_near_misses_and_all():
    with pytest.raises(ConfigError, match=r"'gpt_nex'.*did you mean gpt_neox.*recurrent_gemma"):
        TinyConfig(model_type="gpt_nex", vocab_size=300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30}, "multiple of 32"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"model_type": "rwkv", "n_layers": 1}, "at least 2"),
        ({"vocab_size": 0}, "vocab_size = 0"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TinyConfig(**({"model_type": "gpt_neox", "vocab_size": 300} | fields))


def test_tokenizer_is_deterministic_and_ends_texts_with_id_0():
    again = train_tokenizer(iter(TEXTS), 300)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert len(TOKENIZER) == 300
    assert TOKENIZER.eos_token_id == TOKENIZER.pad_token_id == END_ID
    assert TOKENIZER.all_special_tokens == [END_OF_TEXT]
    with pytest.raises(ConfigError, match="257"):
        train_tokenizer(TEXTS, 256)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_tokenizer_loses_nothing(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([*TEXTS, "", "\ud800"]), max_size=6), st.integers(2, 40))
def test_blocks_are_the_texts_end_to_end(texts, seq_len):
    stream = []
    for text in texts:
        stream += [*TOKENIZER.encode(text.replace("\ud800", "?"), add_special_tokens=False), END_ID]
    blocks = pack_blocks(TOKENIZER, texts, seq_len)
    assert blocks.shape == (len(stream) // seq_len, seq_len)
    assert blocks.ravel().tolist() == stream[: blocks.size]


CONFIG = PretrainConfig(n_tokens=16 * 8 * 30, batch_size=8, seq_len=16, learning_rate=5e-3, autocast=False)


def test_pretraining_learns_and_writes_a_plain_folder(tmp_path):
    out = tmp_path / "base"
    model = small("llama")
    record = pretrain(model, TOKENIZER, TEXTS, CONFIG, out=out, held_out=TEXTS[:5])
    assert record.tokens_seen == CONFIG.n_tokens
    assert record.held_out_loss < record.loss_curve[0][1] - 1
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert json.loads((out / "training.json").read_text())["held_out_loss"] == record.held_out_loss
    assert AutoTokenizer.from_pretrained(out).get_vocab() == TOKENIZER.get_vocab()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])

    assert pretrain(small("llama"), TOKENIZER, TEXTS, CONFIG, out=out, held_out=TEXTS[:5]) == record
    with pytest.raises(ConfigError, match="choose another folder"):
        pretrain(small("llama"), TOKENIZER, TEXTS[:50], CONFIG, out=out)


class Killed(Exception):
    """Stands for a kill in the middle of training."""


class KillAt(TrainerCallback):
    """Ends training abruptly."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, _args, state, _control, **_kwargs):
        if state.global_step == self.step:
            raise Killed


def kill_training_at(monkeypatch, step):
    make = training.make_trainer

    def make_doomed(*args, **kwargs):
        trainer = make(*args, **kwargs)
        trainer.add_callback(KillAt(step))
        return trainer

    monkeypatch.setattr("ltmia.finetuning.pretraining.make_trainer", make_doomed)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=[] if name in {"gpt2", "mamba"} else [pytest.mark.slow]) for name in ARCHITECTURES],
)
def test_a_killed_pretraining_resumes_to_the_same_weights(model_type, tmp_path, monkeypatch):
    config = PretrainConfig(n_tokens=16 * 8 * 12, batch_size=8, seq_len=16, checkpoint_minutes=1e-9, autocast=False)
    whole = small(model_type)
    pretrain(whole, TOKENIZER, TEXTS, config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_training_at(patch, 7)
        with pytest.raises(Killed):
            pretrain(small(model_type), TOKENIZER, TEXTS, config, out=tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    work = tmp_path / ".killed.work"
    (work / "checkpoint-11").mkdir()  # what a kill leaves half-written
    assert (work / "checkpoint-6" / training.COMPLETE).exists()

    resumed = small(model_type)
    record = pretrain(resumed, TOKENIZER, TEXTS, config, out=tmp_path / "killed")
    assert record.loss_curve[-1][0] == 12
    assert len(record.loss_curve) == 12
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name
    assert not work.exists()


def test_held_out_loss_is_nats_per_predicted_token(tmp_path):
    model = small("gpt2")
    record = pretrain(model, TOKENIZER, TEXTS, CONFIG, out=tmp_path / "base", held_out=TEXTS[:9])
    blocks = torch.from_numpy(pack_blocks(TOKENIZER, TEXTS[:9], CONFIG.seq_len)).long()
    logs = torch.log_softmax(logits(model, blocks, torch.ones_like(blocks))[:, :-1], dim=-1)
    direct = -logs.gather(2, blocks[:, 1:, None]).mean().item()
    assert record.held_out_loss == pytest.approx(direct, rel=1e-4)


def test_texts_that_fill_no_block_are_refused(tmp_path):
    with pytest.raises(DataError, match="do not fill one block"):
        pretrain(small("gpt2"), TOKENIZER, ["a"], CONFIG, out=tmp_path / "base")


@pytest.mark.parametrize("fields", [{"n_tokens": 0}, {"warmup": 1.0}, {"seq_len": 1}, {"learning_rate": np.nan}])
def test_impossible_settings_name_the_field(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        PretrainConfig(**({"n_tokens": 100} | fields))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def write(folder):
        (folder / "a").touch()
        raise OSError("disk full")

    with pytest.raises(StoreError, match=r"out: cannot be written \(disk full\)"):
        write_folder(out, write, Marker(kind="a model"))
    assert list(tmp_path.iterdir()) == []


def test_moved_weights_lie_as_far_off_as_asked_and_the_same_each_time():
    base, first, second, other = (small("llama") for _ in range(4))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        move_weights(model, 0.1, seed=seed)
    weights = zip(*(model.parameters() for model in (base, first, second, other)), strict=True)
    for was, one, two, three in weights:
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
        if was.numel() > 5000:
            assert ((one - was).std() / was.abs().mean()).item() == pytest.approx(0.1, rel=0.05)
