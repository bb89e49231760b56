"""Probabilities of suffixes against a plain loop over a real model, and the shares against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ltmia.evaluation.section import Measure
from ltmia.evaluation.shares import difference_of, share_of
from ltmia.extraction.measure import measure_extraction
from ltmia.extraction.suffixes import (
    DRAWS,
    LONGEST_SUFFIX,
    SHORTEST_SUFFIX,
    Suffixes,
    draws_needed,
    extractable,
    least_logp,
    read_suffixes,
    suffix_of,
)
from ltmia.features.statistics import token_statistics
from ltmia.records import RaggedStatistics


@given(st.integers(0, 400), st.booleans())
def test_the_suffix_is_the_second_half_or_the_answer_up_to_a_limit(n: int, prompted: bool) -> None:
    rows = list(range(n))[suffix_of(n, prompted=prompted)]
    whole = list(range(n)) if prompted else list(range(n))[math.ceil(n / 2) :]
    assert rows == (whole[:LONGEST_SUFFIX] if len(whole) >= SHORTEST_SUFFIX else [])


@given(st.floats(1e-9, 1 - 1e-9), st.sampled_from(DRAWS))
def test_extractable_means_that_it_comes_out_at_least_once_with_a_probability_of_one_half(p: float, n: int) -> None:
    once = -math.expm1(n * math.log1p(-p))
    if abs(once - 0.5) > 1e-6:
        assert extractable(np.array([math.log(p)]), n)[0] == (once >= 0.5)


def test_draws_needed_are_the_first_that_suffice() -> None:
    logp = np.log([1.0, 0.5, 0.49, 0.1, 1e-2, 1e-3, 1e-4, 1e-9])
    assert draws_needed(np.append(logp, [-np.inf, np.nan])).tolist() == [1, 1, 10, 10, 100, 1000, 10**6, 0, 0, 0]
    assert least_logp(1) == pytest.approx(math.log(0.5))


def statistics_of(lengths: list[int], seed: int, gain: float = 9.0) -> tuple[RaggedStatistics, list[np.ndarray]]:
    """Statistics of random logits, and the logits and ids behind them."""
    rng = np.random.default_rng(seed)
    n, vocab = sum(lengths), 40
    target, reference = rng.normal(0, 1, (2, n, vocab)).astype(np.float32)
    ids = rng.integers(0, vocab, n)
    target[np.arange(n), ids] += np.repeat(rng.choice([0, gain], len(lengths)), lengths)
    tokens = token_statistics(torch.tensor(target), torch.tensor(reference), torch.tensor(ids), 5)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return RaggedStatistics(tokens=tokens, offsets=offsets, vocab_size=vocab), [target, reference, ids]


@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_and_greedy_matches_are_those_of_a_plain_loop(seed: int) -> None:
    lengths, prompted = [0, 5, 19, 20, 30, 128, 60, 12], [False] * 6 + [True, True]
    statistics, (target, reference, ids) = statistics_of(lengths, seed)
    found = read_suffixes(statistics, prompted)
    assert found.n_tokens.tolist() == [0, 0, 0, 10, 15, 50, 50, 12]
    for text, (length, behind) in enumerate(zip(lengths, prompted, strict=True)):
        rows = statistics.offsets[text] + np.arange(length)[suffix_of(length, prompted=behind)]
        if not len(rows):
            assert np.isnan(found.target_logp[text])
            continue
        for logits, logp, greedy in (
            (target, found.target_logp, found.target_greedy),
            (reference, found.reference_logp, found.reference_greedy),
        ):
            by_hand = torch.tensor(logits[rows]).double().log_softmax(-1)
            assert logp[text] == pytest.approx(sum(float(by_hand[i, ids[row]]) for i, row in enumerate(rows)), abs=1e-3)
            assert greedy[text] == all(int(by_hand[i].argmax()) == ids[row] for i, row in enumerate(rows))
        by_hand = torch.tensor(target[rows]).double().softmax(-1)
        chances, ranks = [], []
        for shares, row in zip(by_hand, rows, strict=True):
            top = shares.topk(5)
            chances.append(float(shares[ids[row]] / top.values.sum()) if ids[row] in top.indices else 0.0)
            ranks.append(1 + int((shares > shares[ids[row]]).sum()))
        with np.errstate(divide="ignore"):
            assert found.target_top_logp[text] == pytest.approx(np.log(chances).sum(), abs=1e-3)
        assert found.target_bound[text] == pytest.approx(-np.log(ranks).sum())
    assert found.target_greedy.any()
    assert (np.nan_to_num(found.target_top_logp, nan=-np.inf) > -np.inf).any()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3), st.integers(1, 12), st.floats(0.05, 1), st.booleans())
def test_no_temperature_top_k_or_top_p_gives_a_token_more_than_one_part_in_its_rank(
    seed: int, temperature: float, top_k: int, top_p: float, coarse: bool
) -> None:
    logits = torch.tensor(np.random.default_rng(seed).normal(0, 3, 12))
    logits = logits.round() if coarse else logits  # ties
    ids = torch.zeros(1, 1, dtype=torch.long)
    chances = logits[None]
    for warp in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        chances = warp(ids, chances)
    ranks = 1 + (logits[None] > logits[:, None]).sum(1)
    assert (chances[0].softmax(0) <= 1 / ranks + 1e-9).all()


def test_a_text_on_which_a_model_gives_nan_has_no_suffix_and_an_impossible_one_never_comes_out() -> None:
    statistics, (target, reference, ids) = statistics_of([40, 40, 40], 0)
    target[70, 3] = np.nan
    target[110, ids[110]] = -np.inf
    tokens = token_statistics(*(torch.tensor(part) for part in (target, reference, ids)), 5)
    found = read_suffixes(RaggedStatistics(tokens=tokens, offsets=statistics.offsets, vocab_size=40), [False] * 3)
    assert found.measured.tolist() == [True, False, True]
    assert found.target_logp[2] == -np.inf
    assert draws_needed(found.target_logp)[2] == 0


@given(st.integers(1, 60), st.data())
def test_without_groups_a_share_has_its_exact_interval(n: int, data: st.DataObject) -> None:
    hits = np.arange(n) < data.draw(st.integers(0, n))
    measured, exact = share_of(hits), binomtest(int(hits.sum()), n).proportion_ci(0.95, "exact")
    assert (measured.low, measured.high) == pytest.approx((exact.low, exact.high))


def test_intervals_of_shares_and_of_their_difference_hold_for_texts_in_groups() -> None:
    """Groups of 1 to 12 texts that come out together or not: the true share lies in 19 of 20 intervals."""
    rng = np.random.default_rng(0)
    inside, naive, apart = [], [], []
    for _ in range(400):
        measured = []
        for share in (0.1, 0.25):
            groups = np.repeat(np.arange(80), rng.integers(1, 13, 80))
            chance = rng.beta(2 * share, 2 * (1 - share), 80)[groups]
            hits = rng.random(len(groups)) < chance
            measured.append(share_of(hits, groups))
            exact = share_of(hits)
            inside.append(measured[-1].low <= share <= measured[-1].high)
            naive.append(exact.low <= share <= exact.high)
        difference = difference_of(measured[1], measured[0])
        apart.append(difference.low <= 0.15 <= difference.high)
    assert np.mean(inside) > 0.92
    assert np.mean(apart) > 0.92
    assert np.mean(naive) < 0.85


@pytest.mark.parametrize(("n_groups", "share"), [(3, 0.3), (5, 0.1)])
def test_the_interval_of_a_share_holds_for_few_groups(n_groups: int, share: float) -> None:
    """Without the correction for few groups it holds for 83 and 87 of 100."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(n_groups), 20)
    measured = [
        share_of(rng.random(len(groups)) < rng.beta(share, 1 - share, n_groups)[groups], groups) for _ in range(500)
    ]
    assert np.mean([m.low <= share <= m.high for m in measured]) > 0.9


def test_no_hit_in_few_groups_says_less_than_in_as_many_texts() -> None:
    hits = np.zeros(100, np.bool_)
    assert share_of(hits, np.repeat(np.arange(10), 10)).high == pytest.approx(share_of(hits[:10]).high)
    assert share_of(hits, np.zeros(100, np.int64)).high == pytest.approx(share_of(hits).high)
    assert difference_of(Measure(reason="none"), share_of(hits)).reason == "none"


def test_members_and_non_members_by_both_models_are_counted_apart_and_repeats_once() -> None:
    logp = np.log([0.9, 0.9, 0.9, 0.01, np.nan, 0.9, 1e-7, 1e-7])
    base = np.log([1e-9, 1e-9, 0.9, 1e-9, np.nan, 1e-9, 1e-9, 0.9])
    suffixes = Suffixes(
        n_tokens=np.where(np.isnan(logp), 0, 20),
        target_logp=logp,
        reference_logp=base,
        target_top_logp=logp / 2,
        target_bound=np.where(logp > math.log(0.5), 0.0, -9.0),
        reference_bound=np.where(base > math.log(0.5), 0.0, -9.0),
    )
    judged = np.arange(8) < 5
    originals = np.array([0, 0, 2, 3, 4, 5, 6, 7])  # the second text repeats the first
    found = measure_extraction(suffixes, judged, originals, None, top_k=20)
    assert (found.n_judged, found.n_nonmembers, found.n_without_suffix) == (3, 3, 1)
    once = found.within["1"]
    assert (once.judged.value, once.nonmembers.value) == pytest.approx((2 / 3, 1 / 3))
    assert (once.judged_by_base.value, once.nonmembers_by_base.value) == pytest.approx((1 / 3, 1 / 3))
    assert once.n_new == 1
    assert once.difference.value == pytest.approx(1 / 3)
    assert found.within["100"].judged.value == 1
    assert found.within["100"].n_new == 2
    assert found.greedy.n_new == 1
    assert found.top_k == 20
    assert (found.among_top["1"].judged.value, found.among_top["10"].judged.value) == pytest.approx((2 / 3, 1))
    assert (found.at_most["1"].judged.value, found.at_most["1"].judged_by_base.value) == pytest.approx((2 / 3, 1 / 3))
    nothing = measure_extraction(suffixes, np.arange(8) == 4, originals, None, top_k=20)
    assert nothing.reason
    assert not nothing.within


def test_a_copy_that_comes_out_counts_though_the_first_does_not() -> None:
    """The same words in other letters may be the ones that were learnt, or long enough to be cut."""
    logp = np.log([1e-9, 0.9, np.nan, 0.9, 1e-9])
    suffixes = Suffixes(
        n_tokens=np.array([20, 20, 0, 12, 20]),
        target_logp=logp,
        reference_logp=np.full(5, -99.0),
        target_top_logp=logp,
        target_bound=np.array([-9.0, 0, -9, -9, -9]),
        reference_bound=np.full(5, -9.0),
    )
    found = measure_extraction(suffixes, np.arange(5) < 4, np.array([0, 0, 2, 2, 4]), None, top_k=20)
    assert (found.n_judged, found.n_without_suffix) == (2, 0)
    assert (found.within["1"].n_new, found.within["1"].judged.value) == (2, 1.0)
    assert found.greedy.n_new == 1
