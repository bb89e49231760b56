"""Continuations against a plain loop, and what is drawn at random against the model's own probabilities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from ltmia.errors import ModelError
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.continuation import Sampling, continue_beginnings
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.progress import silent
from ltmia.scoring.continuations import N_SAMPLED, CutText, continue_texts
from ltmia.scoring.kept_continuations import KeptContinuations
from ltmia.scoring.pair_runner import ExtractionClock

VOCAB = 257


def base_of(kind: str, seed: int = 0) -> nn.Module:
    model = build_base(TinyConfig(model_type=kind, vocab_size=VOCAB, hidden_size=16, n_layers=2), seed=seed)
    with torch.no_grad():  # sharper than new weights are
        model.get_output_embeddings().weight.mul_(20)
    return model


def pair_of(kind: str) -> Pair:
    return Pair(target=base_of(kind), reference=base_of(kind, 1), tokenizer=train_tokenizer([""], VOCAB))


@torch.no_grad()
def shares_after(model: nn.Module, ids: np.ndarray) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba"])
def test_each_token_is_the_likeliest_or_the_one_that_the_number_chooses(kind: str) -> None:
    pair, rng = pair_of(kind), np.random.default_rng(0)
    settings = pair.target.generation_config
    settings.repetition_penalty, settings.do_sample, settings.max_length = 5.0, True, 3  # not used
    beginnings = rng.integers(0, VOCAB, (3, 7))
    settings.eos_token_id = int(shares_after(pair.target, beginnings[0]).argmax())  # nor is this an end
    numbers = rng.random((3, 9))
    numbers[0] = np.nan
    found = continue_beginnings(pair.target_runner, beginnings, numbers, 200)
    assert pair.target.generation_config is settings
    assert found.shape == (3, 9)
    for beginning, chosen, written in zip(beginnings, numbers, found, strict=True):
        ids = beginning
        for number, token in zip(chosen, written, strict=True):
            shares = shares_after(pair.target, ids)[:200]
            sums = shares.cumsum(0) / shares.sum()
            by_hand = int(shares.argmax()) if np.isnan(number) else int((sums <= number).sum())
            assert token == by_hand
            ids = np.append(ids, token)


@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.5])
def test_logits_are_divided_by_the_temperature_and_some_tokens_never_drawn(temperature: float) -> None:
    pair, rng = pair_of("gpt2"), np.random.default_rng(1)
    beginnings, numbers = rng.integers(0, VOCAB, (4, 3)), rng.random((4, 6))
    never = tuple(int(token) for token in shares_after(pair.target, beginnings[0]).topk(3).indices)
    sampling = Sampling(temperature=temperature, never=never)
    found = continue_beginnings(pair.target_runner, beginnings, numbers, VOCAB, sampling)
    for beginning, chosen, written in zip(beginnings, numbers, found, strict=True):
        ids = beginning
        for number, token in zip(chosen, written, strict=True):
            powers = shares_after(pair.target, ids) ** (1 / temperature)
            powers[list(never)] = 0
            assert token == int((powers.cumsum(0) / powers.sum() <= number).sum())
            ids = np.append(ids, token)
    assert not set(never) & set(found.flatten().tolist())


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    pair, rng = pair_of("gpt2"), np.random.default_rng(0)
    beginning = rng.integers(0, VOCAB, 5)
    drawn = continue_beginnings(pair.target_runner, np.tile(beginning, (2000, 1)), rng.random((2000, 1)), VOCAB)
    shares = shares_after(pair.target, beginning)
    for token in shares.topk(5).indices.tolist():
        assert 0.01 < shares[token] < 0.99
        found = binomtest(int((drawn == token).sum()), len(drawn)).proportion_ci(0.9999)
        assert found.low <= shares[token] <= found.high


def test_an_adapter_is_used_by_the_target_and_not_by_the_base() -> None:
    target = add_lora(base_of("gpt2"), rank=2, alpha=4, seed=0)
    for name, parameter in target.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    pair = Pair(target=target, tokenizer=train_tokenizer([""], VOCAB))
    beginnings, greedy = np.random.default_rng(0).integers(0, VOCAB, (1, 6)), np.full((1, 5), np.nan)
    by_target, by_base = (
        continue_beginnings(runner, beginnings, greedy, VOCAB)[0]
        for runner in (pair.target_runner, pair.reference_runner)
    )
    assert by_target.tolist() != by_base.tolist()
    assert by_base.tolist() == continue_beginnings(pair_of("gpt2").target_runner, beginnings, greedy, VOCAB)[0].tolist()


def test_a_model_that_cannot_continue_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, given = pair_of("gpt2"), (np.zeros((1, 3), np.int64), np.full((1, 2), np.nan), VOCAB)

    def broken(**_: object) -> None:
        raise ValueError("no cache")

    monkeypatch.setattr(pair.target, "generate", broken)
    with pytest.raises(ModelError, match="continues no text: ValueError: no cache"):
        continue_beginnings(pair.target_runner, *given)

    class Bare(nn.Module):
        config = pair.target.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = pair.reference

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.get_output_embeddings()

        def forward(self, **given: object) -> object:
            return self.inner(**given)

    model, context = Bare(), torch.no_grad
    with pytest.raises(ModelError, match="no method `generate`"):
        continue_beginnings(ModelRunner(lambda: model, context), *given)


class Killed(BaseException):
    """A kill between two batches."""


def texts_of(lengths: list[tuple[int, int]]) -> list[CutText]:
    rng = np.random.default_rng(0)
    return [CutText(beginning=rng.integers(0, VOCAB, a), suffix=rng.integers(0, VOCAB, b)) for a, b in lengths]


def test_a_text_is_continued_alike_with_others_alone_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, texts = pair_of("gpt2"), texts_of([(6, 5), (6, 4), (3, 8), (6, 5), (3, 1)])
    written: list[int] = []
    inner = continue_beginnings

    def counted(runner: ModelRunner, beginnings: np.ndarray, *given: object) -> np.ndarray:
        written.append(len(beginnings))
        return inner(runner, beginnings, *given)

    monkeypatch.setattr("ltmia.scoring.continuations.continue_beginnings", counted)

    def continued(name: str, some: list[CutText], seed: int = 0, report: object = silent) -> list:
        return continue_texts(pair, some, seed=seed, kept=KeptContinuations(tmp_path / name, "m"), report=report)

    together = continued("a", texts)
    assert sum(written) == 2 * 5 * (1 + N_SAMPLED)
    assert [len(ids) for ids in together[2].target] == [8] * (1 + N_SAMPLED)
    assert len(set(together[2].target)) > 2
    assert [continued("b", [text])[0] for text in texts] == together
    assert continued("c", texts, seed=1)[2].target != together[2].target
    assert continued("c", texts, seed=1)[2].target[0] == together[2].target[0]

    def killed(_what: str, done: int, _of: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        continued("d", texts, report=killed)
    written.clear()
    said = []
    kept, clock = KeptContinuations(tmp_path / "d", "m"), ExtractionClock()
    assert continue_texts(pair, texts, seed=0, kept=kept, report=lambda *given: said.append(given[1:])) == together
    assert sum(written) == (10 - 3) * (1 + N_SAMPLED)
    assert said[0] == (3, 10)
    assert said[-1] == (10, 10)
    kept.finish(clock, silent)
    assert [(one.what, one.n_texts) for one in clock.reused] == [("continuations", 3)]
