"""Exposure against its definition, its interval against simulated ranks, and alternatives against their form."""

import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from ltmia.extraction.alternatives import alternatives_to
from ltmia.extraction.exposure import Tried, rank

FORMS = {"0-9": string.digits, "a-z": string.ascii_lowercase, "A-Z": string.ascii_uppercase}


def form(value: str) -> str:
    """The form by ASCII class; anything else is itself."""
    return "".join(next((name for name, signs in FORMS.items() if c in signs), c) for c in value)


@given(st.text(string.ascii_letters + string.digits + "-. é", min_size=1, max_size=8), st.integers(1, 40))
def test_alternatives_have_the_form_of_the_secret_and_are_never_the_secret(value: str, n: int) -> None:
    size = math.prod(len(FORMS.get(name, "x")) for name in [form(c) for c in value])
    found = alternatives_to(value, n, np.random.default_rng(0))
    assert found.bits == pytest.approx(math.log2(size))
    assert value not in found.values
    assert {form(other) for other in found.values} <= {form(value)}
    assert found.are_all == (size - 1 <= n)
    assert len(found.values) == (size - 1 if found.are_all else n)
    if found.are_all:
        assert len(set(found.values)) == size - 1


def test_letters_and_digits_of_other_scripts_change_within_their_alphabet() -> None:
    found = alternatives_to("Жa٣é漢", 4000, np.random.default_rng(0)).values
    columns = [set(column) for column in zip(*found, strict=True)]
    assert columns[1] == set(string.ascii_lowercase)
    assert columns[2] == {chr(0x660 + i) for i in range(10)}
    assert columns[0] == {chr(code) for code in range(ord("А"), ord("Я") + 1)}
    assert columns[3:] == [{"é"}, {"漢"}]


def test_draws_are_uniform() -> None:
    found = alternatives_to("7a", 26_000, np.random.default_rng(0))
    assert found.are_all
    drawn = alternatives_to("7a7", 2000, np.random.default_rng(0)).values
    counts = np.bincount([int(other[0]) for other in drawn], minlength=10)
    assert np.abs(counts - 200).max() < 5 * math.sqrt(180)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=40, unique=True))
def test_with_all_alternatives_exposure_is_its_definition(drawn: list[int]) -> None:
    values, secret, n = np.array(drawn, np.float64), float(drawn[0]), len(drawn)
    others = values[1:]
    tried = rank(secret, others, are_all=True, bits=math.log2(n))
    place = sorted(values.tolist(), reverse=True).index(secret) + 1
    assert tried.exposure == pytest.approx(math.log2(n) - math.log2(place))
    assert tried.interval() == (tried.exposure, tried.exposure)


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.003, 0.2, 0.9])
def test_the_true_exposure_lies_in_its_interval(share: float) -> None:
    """With 95 % at least, summed over all outcomes of 200 draws from a million values."""
    size, n, inside = 10**6, 200, 0.0
    better = round(share * (size - 1))
    truth = math.log2(size) - math.log2(better + 1)
    for n_better, chance in enumerate(binom.pmf(np.arange(n + 1), n, better / (size - 1))):
        tried = Tried(n=n, n_better=n_better, are_all=False, bits=math.log2(size))
        low, high = tried.interval()
        assert low <= tried.exposure <= high <= tried.bits + 1e-9
        inside += chance * (low - 1e-9 <= truth <= high + 1e-9)
    assert inside >= 0.95
    assert inside < 0.99 or share < 0.01


def test_a_secret_that_nothing_beats_is_bounded_from_below_only() -> None:
    tried = Tried(n=1000, n_better=0, are_all=False, bits=5000.0)
    low, high = tried.interval()
    assert tried.exposure == tried.reach == math.log2(1001)
    assert low == pytest.approx(-math.log2(1 - 0.025 ** (1 / 1000)))  # the share of which 1,000 draws miss all
    assert high == 5000
    assert Tried(n=1000, n_better=1000, are_all=False, bits=20.0).interval()[0] == pytest.approx(0, abs=1e-9)


def test_equal_probabilities_are_no_sign_of_learning() -> None:
    """A model that gives all values one probability knows nothing: its exposure is one bit, that of the middle rank."""
    assert rank(-3.0, np.full(1001, -3.0), are_all=True, bits=math.log2(1002)).exposure == pytest.approx(1, abs=0.01)
    some = rank(-3.0, np.array([-1.0, -3.0, -3.0, -9.0]), are_all=False, bits=20.0)
    assert some.n_better == 2
