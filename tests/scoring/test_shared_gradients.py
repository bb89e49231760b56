"""Gradients read in the passes that score texts are those of passes of their own, and change no score."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gradient_oracles import TOKENIZER, moved_pair, small, some_texts
from ltmia.errors import ModelError
from ltmia.models.pair import Pair
from ltmia.scoring.extraction import ExtractionConfig, ExtractionRun, extract_batches
from ltmia.weights.backward import TextGradients
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.gradients import GradientReader

KINDS = ("llama", "gpt2", "gemma", "mamba", "recurrent_gemma")
CONFIG = ExtractionConfig(attacks=("loss", "difference"), k=5, batch_size=4)


def adapter_pair() -> Pair:
    tuned = get_peft_model(small(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return Pair(target=tuned.eval(), tokenizer=TOKENIZER)


def opened(pair, texts, folder, points=(0.0, 1.0)):
    coordinates = choose_coordinates(pair, n_coordinates=300, n_layers=2, seed=0)
    return GradientReader(pair, texts, coordinates, points, folder, identity="a", batch_size=CONFIG.batch_size)


def extracted(pair, texts, gradients=None):
    found = extract_batches(pair, [""] * len(texts), CONFIG, ExtractionRun(encoded=texts), gradients=gradients)
    scores = {text.row: text.scores for batch in found for text in batch.texts}
    return np.array([list(scores[row].values()) for row in range(len(texts))])


def values(file):
    n = np.arange(file.shape.n_texts)
    return np.stack([file.block(point, n, slice(0, None)) for point in range(file.shape.n_points)])


@pytest.mark.parametrize("make", [*KINDS, "adapter"])
def test_shared_passes_give_the_same_gradients_and_scores(make: str, tmp_path) -> None:
    pair, texts = adapter_pair() if make == "adapter" else moved_pair(make), some_texts(9)
    apart = opened(pair, texts, tmp_path / "apart").finish()
    reader = opened(pair, texts, tmp_path / "shared")
    np.testing.assert_allclose(extracted(pair, texts, reader), extracted(pair, texts), rtol=1e-6, atol=1e-6)

    np.testing.assert_array_equal(values(reader.finish()), values(apart))


@pytest.mark.parametrize(("make", "n_passes"), [("llama", (1, 1)), ("adapter", (1, 2))])
def test_each_model_runs_once_on_each_text(make: str, n_passes, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an adapter's base runs twice: as adapter of zeros for the gradients, and without it for the scores."""
    pair, texts = adapter_pair() if make == "adapter" else moved_pair(make), some_texts(9)
    reader = opened(pair, texts, tmp_path)
    passed = {"target": 0, "reference": 0}
    for name in passed:
        runner = getattr(pair, f"{name}_runner")

        def counted(ids, mask, *past, real=runner._logits, name=name):
            passed[name] += len(ids)
            return real(ids, mask, *past)

        monkeypatch.setattr(runner, "_logits", counted)
    extracted(pair, texts, reader)
    reader.finish()
    assert (passed["reference"], passed["target"]) == (n_passes[0] * len(texts), n_passes[1] * len(texts))


def test_a_killed_run_goes_on_with_what_it_has(tmp_path) -> None:
    pair, texts = moved_pair(), some_texts(9)
    whole = opened(pair, texts, tmp_path / "whole")
    extracted(pair, texts, whole)
    cut = opened(pair, texts, tmp_path / "cut")
    next(extract_batches(pair, [""] * len(texts), CONFIG, ExtractionRun(encoded=texts), gradients=cut))
    cut.file.close()
    again = opened(pair, texts, tmp_path / "cut")
    assert 0 < sum(again.file.is_done(1, row) for row in range(len(texts))) < len(texts)
    extracted(pair, texts, again)
    for point in range(2):
        name = f"gradients-{point}.f16"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def one_text_is_too_much(*_):
    raise torch.OutOfMemoryError


def a_layer_mixes_texts(self, rows, starts, real=TextGradients.with_states):
    self.mixing.add("a.weight")
    return real(self, rows, starts)


@pytest.mark.parametrize(
    ("fault", "message"), [(one_text_is_too_much, "does not fit into memory"), (a_layer_mixes_texts, "texts mixed")]
)
def test_gradients_that_cannot_be_read_cost_no_score(fault, message, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probabilities are computed all the same; reading the update then says what is wrong."""
    pair, texts = moved_pair(), some_texts(2)
    reader = opened(pair, texts, tmp_path)
    monkeypatch.setattr(TextGradients, "with_states", fault)
    np.testing.assert_allclose(extracted(pair, texts, reader), extracted(pair, texts), rtol=1e-6, atol=1e-6)
    with pytest.raises(ModelError, match=message):
        reader.finish()
    assert not any(reader.file.is_done(point, row) for point in range(2) for row in range(2))


def test_points_between_the_models_have_passes_of_their_own(tmp_path) -> None:
    pair, texts = moved_pair(), some_texts(5)
    reader = opened(pair, texts, tmp_path, points=(0.5, 1.0))
    extracted(pair, texts, reader)
    assert all(reader.file.is_done(1, row) for row in range(5))
    assert not any(reader.file.is_done(0, row) for row in range(5))
    assert all(reader.finish().is_done(0, row) for row in range(5))
