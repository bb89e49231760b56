"""Defects of published implementations, each with the input that shows it."""

import zlib
from dataclasses import fields

import numpy as np
import pytest
import torch

from ltmia.attacks import likelihood, reference
from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.errors import ConfigError
from ltmia.features.statistics import token_statistics
from ltmia.records import TokenStatistics

VOCAB = 40
COUNTS = np.random.default_rng(5).integers(0, 50, VOCAB)


def evidence(n: int, seed: int = 0, text: str = "a text") -> TextEvidence:
    rng = np.random.default_rng(seed)
    b = rng.normal(0, 2, (n, VOCAB)).astype(np.float32)
    a = b + rng.normal(0, 0.7, (n, VOCAB)).astype(np.float32)
    ids = rng.integers(0, VOCAB, n)
    return text_evidence(token_statistics(torch.tensor(a), torch.tensor(b), torch.tensor(ids), 5), ids, text)


def text_evidence(statistics: TokenStatistics, ids: np.ndarray, text: str = "a text") -> TextEvidence:
    frequencies = TokenFrequencies.from_counts(COUNTS)
    return TextEvidence(text=text, tokens=statistics, token_ids=ids.astype(np.int32), token_frequencies=frequencies)


def replaced(given: TextEvidence, **columns: np.ndarray) -> TextEvidence:
    kept = {f.name: getattr(given.tokens, f.name) for f in fields(TokenStatistics)}
    return text_evidence(TokenStatistics(**{**kept, **columns}), given.token_ids, given.text)


def test_ez_mia_orders_texts_by_strength_even_without_loss_or_error() -> None:
    e = evidence(12, 2)
    wrong, right = np.full(12, 7, np.int32), np.ones(12, np.int32)
    logp = np.full(12, -3, np.float32)

    def score(d: list[float], rank: np.ndarray = wrong) -> float:
        moved = logp + np.array(d, np.float32)
        return reference.ez_mia(replaced(e, target_logp=moved, reference_logp=logp, target_rank=rank))

    ladder = [
        score([0] + [-1] * 11),
        score([0] + [-1, 1] * 5 + [-1]),
        score([0] + [1] * 10 + [-1]),
        score([0] + [2] * 10 + [-1e-6]),
        score([0] + [1e-3] * 11),
        score([0] + [1] * 11),
        score([0] + [1.5] * 11),
        score([0] * 12, right),
    ]
    assert ladder == sorted(set(ladder))
    assert np.isfinite(np.float32(ladder)).all()


def test_ez_mia_leaves_out_the_first_position() -> None:
    e = evidence(12, 2)
    first = e.tokens.target_logp.copy()
    first[0] -= 5
    assert reference.ez_mia(replaced(e, target_logp=first)) == reference.ez_mia(e)


def test_wbc_windows_of_the_paper_are_not_those_of_the_code() -> None:
    assert reference.WBC_EQ12 == (2, 3, 4, 5, 8, 11, 15, 21, 29, 40)
    assert reference.WBC_WINDOWS != reference.WBC_EQ12


def test_wbc_asks_for_more_than_a_draw() -> None:
    e = evidence(12)
    assert reference.wbc(replaced(e, reference_logp=e.tokens.target_logp)) == 0.0


@pytest.mark.parametrize("windows", [(), (0, 3), (-1,)])
def test_wbc_refuses_windows_without_positions(windows: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        reference.wbc(evidence(12), windows)


def test_surp_says_nothing_about_a_text_the_target_is_never_sure_of() -> None:
    e = evidence(20)
    assert np.isnan(likelihood.surp(replaced(e, target_entropy=np.full(20, 2.5, np.float32))))


def test_ratio_needs_a_reference_with_some_loss() -> None:
    e = evidence(5)
    assert np.isnan(likelihood.ratio(replaced(e, reference_logp=np.zeros(5, np.float32))))


def test_frequencies_count_every_occurrence_and_are_smoothed() -> None:
    counts = np.bincount([1, 1, 1, 2], minlength=5)
    frequency = np.exp(TokenFrequencies.from_counts(counts).log_frequency)
    np.testing.assert_allclose(frequency, np.array([1, 4, 2, 1, 1]) / 9)


def test_dc_pdd_weighs_a_repeated_token_once_where_it_first_stands() -> None:
    ids = np.array([3, 4, 3, 3])
    statistics = evidence(4).tokens
    logp = np.log(np.array([0.001, 0.002, 0.9, 0.9], np.float32))
    e = replaced(text_evidence(statistics, ids), target_logp=logp)
    rarity = np.log((COUNTS.sum() + VOCAB) / (COUNTS[[3, 4]] + 1))
    assert likelihood.dc_pdd(e, ceiling=9.0) == pytest.approx((rarity * [0.001, 0.002]).mean(), rel=1e-5)


def test_zlib_counts_bytes_of_the_text_and_takes_lone_surrogates() -> None:
    plain, odd = evidence(9, text="é" * 50), evidence(9, text="\ud800")
    assert likelihood.zlib(plain) == pytest.approx(likelihood.loss(plain) / len(zlib.compress(b"\xc3\xa9" * 50)))
    assert likelihood.zlib(odd) == pytest.approx(likelihood.loss(odd) / len(zlib.compress(b"\xed\xa0\x80")))


def test_ids_and_positions_must_agree() -> None:
    with pytest.raises(ValueError, match="3 token ids for 4"):
        text_evidence(evidence(4).tokens, np.arange(3))
