"""Batches fit into memory: measured beforehand, halved when it runs out, and no finished part is run again."""

import itertools
import math

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.batching import (
    MOST_TOKENS,
    PASSES,
    Halving,
    PeakMemory,
    free_bytes,
    length_batches,
    pass_stops,
    pick_batch_size,
)
from ltmia.models.forward import scored_states
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.scoring.extraction import ExtractionConfig, extract_batches

CPU = torch.device("cpu")
SHAPE = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0)


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    models = [GPT2LMHeadModel(SHAPE).eval() for _ in range(2)]
    return Pair(target=models[0], reference=models[1], tokenizer=train_tokenizer(["a few words of text"], 300))


def texts_of(*lengths: int) -> list[EncodedText]:
    return [EncodedText(ids=np.arange(n) % 300) for n in lengths]


def test_batches_are_of_similar_length_and_hold_each_scorable_text_once() -> None:
    rng = np.random.default_rng(0)
    encoded = [*texts_of(*rng.integers(3, 40, 30)), EncodedText(ids=np.arange(1), reason="too few")]
    batches = length_batches(encoded, 4)
    assert sorted(i for rows in batches for i in rows) == list(range(30))
    lengths = [len(encoded[i].ids) for rows in batches for i in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(rows) * len(encoded[rows[0]].ids) <= 4 * max(lengths) for rows in batches)
    assert length_batches([], 4) == []


def every_way_to_cut(n: int) -> list[list[int]]:
    inner = range(1, n)
    return [[*some, n] for size in range(n) for some in itertools.combinations(inner, size)]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8), most=st.integers(1, 800))
def test_a_batch_is_cut_into_the_passes_that_cost_least(lengths: list[int], most: int) -> None:
    def cost(stops: list[int]) -> float:
        parts = [lengths[a:b] for a, b in itertools.pairwise([0, *stops])]
        too_large = any(len(part) > 1 and max(part) * len(part) > most for part in parts)
        return math.inf if too_large else sum(max(part) * len(part) + most / PASSES for part in parts)

    least = min(cost(stops) for stops in every_way_to_cut(len(lengths)))
    assert cost(pass_stops(lengths, most)) == pytest.approx(least)


def test_peak_memory_is_what_is_alive_at_once() -> None:
    weight = torch.ones(250, 1000)
    with torch.inference_mode(), PeakMemory() as memory:
        for _ in range(5):
            product = torch.ones(100, 250) @ weight
            product = product.t()[:10]
        del product
    megabyte_and_a_half = 4 * (100 * 250 + 100 * 1000)
    # The product of the turn before is alive until the next replaces it.
    assert megabyte_and_a_half <= memory.peak <= megabyte_and_a_half + 4 * 100 * 1000


def test_the_memory_of_a_pass_grows_with_the_texts(pair: Pair) -> None:
    def peak(n: int) -> int:
        with PeakMemory() as memory:
            scored_states(pair, pair.target_runner, texts_of(*[64] * n))
        return memory.peak

    assert peak(8) == pytest.approx(8 * peak(1), rel=0.05)


@pytest.mark.parametrize(("passes_that_fit", "expected"), [(0.1, 1), (10, 5), (10_000, MOST_TOKENS["cpu"] // 64)])
def test_auto_takes_half_of_what_is_free_within_bounds(pair, monkeypatch, passes_that_fit, expected) -> None:
    def run(text: EncodedText) -> torch.Tensor:
        return scored_states(pair, pair.target_runner, [text])

    with PeakMemory() as memory:
        run(texts_of(64)[0])
    free = int(passes_that_fit * memory.peak) + 1
    monkeypatch.setattr("ltmia.models.batching.free_bytes", lambda _device: free)
    assert pick_batch_size("auto", 64, CPU, run) == expected
    assert pick_batch_size(7, 64, CPU, run) == 7


def test_free_memory_is_that_of_the_machine_or_less() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_halves_run_when_memory_runs_out_and_later_batches_start_there(error) -> None:
    encoded = texts_of(*[10] * 24)
    tried: list[int] = []

    def work(rows: list[int]) -> list[int]:
        tried.append(len(rows))
        if len(rows) > 3:
            raise error
        return rows

    halving = Halving(encoded)
    found = [rows for batch in length_batches(encoded, 8) for rows in halving.run(batch, work)]
    assert [row for rows in found for row in rows] == list(range(24))
    assert tried == [8, 4, *[2] * 12]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(_rows: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(Halving(texts_of(5, 5)).run([0, 1], work))


def test_one_text_that_does_not_fit_is_an_error_with_a_cure() -> None:
    def work(_rows: list[int]) -> None:
        raise MemoryError

    with pytest.raises(ModelError, match="one text of 5 tokens does not fit into memory; lower `max_length`"):
        list(Halving(texts_of(5, 5)).run([0, 1], work))


def test_extraction_goes_on_where_the_allocator_fails(pair: Pair, monkeypatch) -> None:
    texts = ["a few words of text"] * 21
    config = ExtractionConfig(attacks=("loss",), k=5, batch_size=21)
    alone = next(iter(extract_batches(pair, texts[:1], config))).texts[0].scores["loss"]
    real = pair.target_runner.hidden_states

    def greedy(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        torch.empty(2**50 if len(ids) > 6 else 1)
        return real(ids, mask)

    monkeypatch.setattr(pair.target_runner, "hidden_states", greedy)
    batches = [batch.texts for batch in extract_batches(pair, texts, config)]
    assert [len(batch) for batch in batches] == [5, 5, 5, 3, 3]
    assert sorted(text.row for batch in batches for text in batch) == list(range(21))
    np.testing.assert_allclose([text.scores["loss"] for batch in batches for text in batch], alone, atol=1e-5)
