"""Two models by turns give the scores of two models at once, with one of them in memory at a time."""

import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ltmia
from disks import mounted
from ltmia.errors import StoreError
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.sequential import KeptStates
from ltmia.scoring import pair_runner
from ltmia.scoring.extraction import ExtractionConfig, extract_batches

TEXTS = [f"Crate {i} of the cargo holds a letter, and a map of the coast." + " Gulls." * (i % 5) for i in range(11)]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    places = {}
    for seed, name in enumerate(("target", "base")):
        torch.manual_seed(seed)
        config = AutoConfig.for_model("llama", vocab_size=300, **SHAPE, pad_token_id=None)
        places[name] = tmp_path_factory.mktemp("models") / name
        AutoModelForCausalLM.from_config(config).save_pretrained(places[name])
        train_tokenizer(TEXTS, 300).save_pretrained(places[name])
    return places


@pytest.fixture
def loads(monkeypatch):
    """Count loads, and the models alive at each."""
    from ltmia.models import loading

    alive: list[weakref.ref] = []
    counts: list[int] = []
    real = loading.load_model

    def load(source, options):
        gc.collect()
        counts.append(sum(model() is not None for model in alive))
        model, origin = real(source, options)
        alive.append(weakref.ref(model))
        return model, origin

    monkeypatch.setattr(loading, "load_model", load)
    return counts


def test_scores_that_learn_from_too_few_texts_come_with_a_warning(folders, caplog):
    pair = ltmia.load_pair(folders["target"], folders["base"], dtype="float32", device="cpu")
    ltmia.score_texts(pair, TEXTS, attacks="difference")
    assert "too few" not in caplog.text
    ltmia.score_texts(pair, TEXTS, attacks="excess,difference")
    assert f"{len(TEXTS)} are too few: give at least 40" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_scores_are_those_of_both_models_at_once(folders, loads, dtype):
    both = ltmia.load_pair(folders["target"], folders["base"], dtype=dtype, device="cpu")
    expected = ltmia.score_texts(both, TEXTS, batch_size=4)
    del both
    loads.clear()
    pair = ltmia.load_pair(folders["target"], folders["base"], dtype=dtype, device="cpu", sequential=True)
    found = ltmia.score_texts(pair, TEXTS, batch_size=4)
    for name, scores in expected.items():
        np.testing.assert_array_equal(found[name], scores)
    assert loads == [0] * 4
    assert pair.target_origin.source == str(folders["target"])


@pytest.mark.slow
def test_disk_is_bounded_by_running_in_rounds(folders, loads, monkeypatch):
    monkeypatch.setattr(pair_runner, "STATES_BYTES", 1)
    pair = ltmia.load_pair(folders["target"], folders["base"], dtype="float32", device="cpu", sequential=True)
    loads.clear()
    found = [
        t.row
        for b in extract_batches(pair, TEXTS, ExtractionConfig(attacks=("loss",), k=5, batch_size=4))
        for t in b.texts
    ]
    assert sorted(found) == list(range(len(TEXTS)))
    assert len(loads) >= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_states_come_back_bit_by_bit_in_any_order(tmp_path, dtype):
    states = torch.randn(9, 5).to(dtype)
    with KeptStates(tmp_path) as kept:
        kept.write([7, 3], [2, 4], states[:6])
        kept.write([5], [3], states[6:])
        assert kept.n_bytes == 9 * 5 * dtype.itemsize
        assert torch.equal(kept.read([5, 7]), torch.cat([states[6:], states[:2]]))
        assert torch.equal(kept.read([3]), states[2:6])
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_by_the_hidden_states(tmp_path):
    def fill(disk):
        with KeptStates(disk) as kept:  # closing writes what is left, and fails again
            for row in range(64):
                kept.write([row], [1], torch.zeros(1, 1500))

    with mounted(tmp_path / "disk", "size=256k") as disk, pytest.raises(StoreError, match=f"^{disk}: "):
        fill(disk)
