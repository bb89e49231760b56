"""Further looks at a pair, against one plain forward pass per text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.finetuning.tiny import TinyConfig, build_base
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.models.multi_pass import PairQueries
from ltmia.models.pair import Pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    options = LoadOptions(dtype="float32", device="cpu")
    base, _ = load_model(str(demo_base_path()), options)
    shape = TinyConfig(model_type="llama", vocab_size=base.config.vocab_size, hidden_size=32, n_layers=1, n_heads=2)
    tokenizer = load_tokenizer(str(demo_base_path()), options)
    return Pair(target=build_base(shape, seed=1), reference=base, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def queries(pair: Pair) -> PairQueries:
    return PairQueries(pair, max_length=48, batch_size=4)


TEXTS = [*demo_texts().texts[:5], "", "a", "Hello there, Mr. President."]


def plain_losses(pair: Pair, ids: list[int], first: int) -> np.ndarray:
    logits = pair.target(input_ids=torch.tensor([ids])).logits[0].float()
    logp = logits.log_softmax(-1).detach().numpy()
    return np.array([-logp[t - 1, ids[t]] for t in range(first, len(ids))])


def ids_of(pair: Pair, text: str) -> list[int]:
    return pair.tokenizer(text)["input_ids"][:48]


def test_token_losses_are_those_of_one_plain_forward(pair: Pair, queries: PairQueries) -> None:
    for text, found in zip(TEXTS, queries.token_losses(TEXTS), strict=True):
        ids = ids_of(pair, text)
        expected = plain_losses(pair, ids, 1) if len(ids) > 2 else np.empty(0)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_prefix_is_read_and_not_scored(pair: Pair, queries: PairQueries) -> None:
    prefix = "Fellow citizens of the Senate. "
    before = pair.tokenizer(prefix)["input_ids"]
    for text, found in zip(TEXTS, queries.token_losses(TEXTS, prefix), strict=True):
        ids = ids_of(pair, text)
        expected = plain_losses(pair, before + ids, len(before) + 1) if len(ids) > 2 else np.empty(0)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_text_that_does_not_fit_behind_the_prefix_has_no_losses(pair: Pair, queries: PairQueries) -> None:
    long = "word " * 2000
    assert all(len(losses) == 0 for losses in queries.token_losses(TEXTS, long))


def test_shots_are_chosen_so_that_a_text_fits_behind_them(pair: Pair, queries: PairQueries) -> None:
    limit = pair.max_positions
    assert limit is not None
    shots = queries.fitting_shots(["word " * 5000, *demo_texts().texts[:30]], 30)
    assert shots
    assert "word " * 5000 not in shots
    assert len(pair.tokenizer("".join(shots))["input_ids"]) + 48 <= limit
    assert all(len(x) for x in queries.token_losses(TEXTS[:5], "".join(shots)))


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
def test_gradient_norms_are_those_of_backward(pair: Pair, queries: PairQueries, order: float) -> None:
    before = [p.requires_grad for p in pair.target.parameters()]
    found = queries.gradient_norms(TEXTS, order)
    assert [p.requires_grad for p in pair.target.parameters()] == before
    for text, norm in zip(TEXTS, found, strict=True):
        ids = torch.tensor([ids_of(pair, text)])
        if ids.shape[1] < 3:
            assert np.isnan(norm)
            continue
        pair.target.zero_grad()
        with torch.enable_grad():
            pair.target(input_ids=ids, labels=ids).loss.backward()
        norms = [p.grad.norm(order).item() for p in pair.target.parameters() if p.grad is not None]
        pair.target.zero_grad()
        assert norm == pytest.approx(np.mean(norms), rel=1e-3)


@settings(max_examples=10)
@given(st.integers(0, 12))
def test_neighbours_differ_in_one_token(pair: Pair, queries: PairQueries, n: int) -> None:
    text = "The people of the United States are free."
    ids = ids_of(pair, text)
    near = queries.neighbours(text, n)
    assert len(near) == len(set(near)) == n
    for other in near:
        assert other != text
    best = near[:1]
    for other in best:
        changed = pair.tokenizer(other)["input_ids"]
        if len(changed) == len(ids):  # a swapped token may join its neighbours when read again
            assert sum(a != b for a, b in zip(ids, changed, strict=True)) == 1


def test_the_best_neighbour_is_the_one_with_the_largest_swap_score(pair: Pair, queries: PairQueries) -> None:
    text = "The people of the United States are free."
    ids = ids_of(pair, text)
    p = pair.reference(input_ids=torch.tensor([ids])).logits[0].softmax(-1).detach().numpy()
    scored = [
        (p[t - 1, v] / (1 - p[t - 1, ids[t]]), t, v)
        for t in range(1, len(ids))
        for v in np.argsort(-p[t - 1])[:7]
        if v != ids[t]
    ]
    _, t, v = max(scored)
    swapped = [*ids[:t], int(v), *ids[t + 1 :]]
    assert queries.neighbours(text, 1) == [pair.tokenizer.decode(swapped, skip_special_tokens=True)]


def test_nothing_to_score_has_no_neighbours(queries: PairQueries) -> None:
    assert queries.neighbours("", 5) == []
