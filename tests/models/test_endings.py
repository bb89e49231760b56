"""Log-probabilities of endings against a plain loop, with and without a memory of the beginning."""

import numpy as np
import pytest
import torch

from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models import endings
from ltmia.models.endings import ending_logp
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner

VOCAB = 257


def pair_of(kind: str) -> Pair:
    tokenizer = train_tokenizer([""], VOCAB)
    target, reference = (
        build_base(TinyConfig(model_type=kind, vocab_size=VOCAB, hidden_size=16, n_layers=2), seed=seed)
        for seed in (0, 1)
    )
    return Pair(target=target, reference=reference, tokenizer=tokenizer)


def by_hand(model: torch.nn.Module, beginning: np.ndarray, ending: np.ndarray) -> float:
    """One text at a time, as a whole."""
    ids = torch.from_numpy(np.concatenate([beginning, ending]))
    with torch.no_grad():
        logp = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return sum(float(logp[i - 1, ids[i]]) for i in range(len(beginning), len(ids)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
def test_endings_have_the_log_probabilities_of_whole_texts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "ROWS_AT_ONCE", 0)  # several passes
    pair, rng = pair_of(kind), np.random.default_rng(0)
    runs: list[int] = []
    inner = ModelRunner.hidden_states

    def counted(self: ModelRunner, ids: torch.Tensor, *given: object) -> torch.Tensor:
        runs.append(ids.shape[1])
        return inner(self, ids, *given)

    monkeypatch.setattr(ModelRunner, "hidden_states", counted)
    for n_before in (1, 2, 12):
        beginning = rng.integers(0, VOCAB, n_before)
        others = [rng.integers(0, VOCAB, n) for n in (3, 1, 6, 3, 2, 5, 5, 4, 1)]
        for model, runner in ((pair.target, pair.target_runner), (pair.reference, pair.reference_runner)):
            runs.clear()
            found = ending_logp(pair, runner, beginning, others)
            assert found == pytest.approx([by_hand(model, beginning, ending) for ending in others], abs=1e-4)
            assert len(runs) > 2
            if n_before == 12:  # the beginning is read once where the model can go on from there
                assert (max(runs[1:]) < 12) == (kind != "mamba")


def test_a_base_that_is_the_target_without_its_adapter_gives_its_own() -> None:
    base = build_base(TinyConfig(model_type="gpt2", vocab_size=VOCAB, hidden_size=16, n_layers=1), seed=0)
    target = add_lora(base, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for name, weight in target.named_parameters():
            if "lora_B" in name:
                weight.add_(0.3)
    pair = Pair(target=target, tokenizer=train_tokenizer([""], VOCAB))
    beginning, others = np.arange(9), [np.array([1, 2, 3]), np.array([4])]
    apart = ending_logp(pair, pair.reference_runner, beginning, others)
    with target.disable_adapter():
        assert apart == pytest.approx([by_hand(target, beginning, ending) for ending in others], abs=1e-4)
    assert np.abs(ending_logp(pair, pair.target_runner, beginning, others) - apart).min() > 1e-3


def test_a_memory_that_leads_elsewhere_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of("gpt2")
    with torch.no_grad():
        for weight in pair.target.transformer.h.parameters():  # what stands before shall matter
            weight.mul_(4)
    inner = ModelRunner.remember
    monkeypatch.setattr(ModelRunner, "remember", lambda self, ids: inner(self, ids.flip(1)))
    beginning, others = np.arange(12), [np.array([1, 2, 3]), np.array([4])]
    found = ending_logp(pair, pair.target_runner, beginning, others)
    assert found == pytest.approx([by_hand(pair.target, beginning, ending) for ending in others], abs=1e-4)
