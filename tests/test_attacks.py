"""Every attack against its definition, and one contract that all of them keep."""

import zlib
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltmia.attacks import likelihood, probing, reference
from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.table import ATTACKS, fast_attacks, score_evidence, select_attacks
from ltmia.errors import ConfigError
from ltmia.features.statistics import token_statistics
from ltmia.records import TokenStatistics

VOCAB = 40
FAST = fast_attacks(tuple(ATTACKS))


def evidence(n: int, seed: int = 0, *, gain: float = 0.0, text: str = "some text") -> TextEvidence:
    """A text whose target logits are the reference's, some noise, and `gain` on the true tokens."""
    rng = np.random.default_rng(seed)
    b = rng.normal(0, 2, (n, VOCAB)).astype(np.float32)
    a = b + rng.normal(0, 0.5, (n, VOCAB)).astype(np.float32)
    ids = rng.integers(0, VOCAB, n)
    a[np.arange(n), ids] += gain
    tokens = token_statistics(torch.tensor(a), torch.tensor(b), torch.tensor(ids), 5)
    counts = np.arange(VOCAB)
    return TextEvidence(
        text=text,
        tokens=tokens,
        token_ids=ids.astype(np.int32),
        token_frequencies=TokenFrequencies.from_counts(counts),
    )


def replaced(given: TextEvidence, **columns: np.ndarray) -> TextEvidence:
    kept = {f.name: getattr(given.tokens, f.name) for f in fields(TokenStatistics)}
    return TextEvidence(
        text=given.text,
        tokens=TokenStatistics(**{**kept, **columns}),
        token_ids=given.token_ids,
        token_frequencies=given.token_frequencies,
    )


@given(n=st.integers(1, 60), seed=st.integers(0, 999))
def test_likelihood_attacks_equal_their_definitions(n: int, seed: int) -> None:
    e = evidence(n, seed)
    t, r = e.tokens.target_logp.astype(float), e.tokens.reference_logp.astype(float)
    z = (t + e.tokens.target_entropy) / e.tokens.target_spread
    k = max(1, int(0.2 * n))
    first = [i for i in range(n) if e.token_ids[i] not in e.token_ids[:i]]
    frequency = (e.token_ids[first] + 1) / (np.arange(VOCAB).sum() + VOCAB)
    expected = {
        "loss": t.mean(),
        "zlib": t.mean() / len(zlib.compress(b"some text")),
        "difference": (t - r).mean(),
        "ratio": -t.mean() / r.mean(),
        "min_k": sorted(t)[:k] and np.mean(sorted(t)[:k]),
        "min_k_plus_plus": np.mean(sorted(z)[:k]),
        "dc_pdd": np.mean(np.minimum(np.exp(t[first]) * np.log(1 / frequency), 0.01)),
    }
    for name, value in expected.items():
        assert score_evidence(e, [name])[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@given(n=st.integers(2, 60), seed=st.integers(0, 999))
def test_wbc_equals_a_naive_loop(n: int, seed: int) -> None:
    e = evidence(n, seed)
    d = e.tokens.target_logp.astype(float) - e.tokens.reference_logp
    shares = []
    for window in reference.WBC_WINDOWS:
        w = min(window, n)
        sums = [d[i : i + w].sum() for i in range(n - w + 1)]
        shares.append(np.mean([s > 0 for s in sums]))
    assert reference.wbc(e) == pytest.approx(np.mean(shares))


def test_wbc_equation_12_gives_the_windows_of_the_paper() -> None:
    assert reference.WBC_EQ12 == (2, 3, 4, 5, 8, 11, 15, 21, 29, 40)


@given(n=st.integers(3, 60), seed=st.integers(0, 999))
def test_ez_mia_equals_its_definition(n: int, seed: int) -> None:
    e = evidence(n, seed)
    d = (e.tokens.target_logp.astype(float) - e.tokens.reference_logp)[1:]
    errors = [x for x, rank in zip(d, e.tokens.target_rank[1:], strict=True) if rank > 1]
    gain, lost = sum(x for x in errors if x > 0), sum(-x for x in errors if x < 0)
    if lost > 0:
        assert reference.ez_mia(e) == pytest.approx(gain / lost, rel=1e-4)


def test_ez_mia_ranks_texts_without_loss_highest_and_the_published_code_lowest() -> None:
    e = evidence(10)
    better = replaced(e, reference_logp=e.tokens.target_logp - 3)  # every token gained 3 nats
    flawless = replaced(e, target_rank=np.ones(10, np.int32))
    ordered = [reference.ez_mia(x) for x in (e, better, flawless)]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) == 3
    assert np.isfinite(ordered).all()
    assert reference.ez_mia(better, rule="published_code") == 0.0


def test_surp_averages_surprises_at_confident_positions() -> None:
    e = evidence(20, 3)
    t, h = e.tokens.target_logp.astype(float), np.where(np.arange(20) < 12, 1.0, 3.0).astype(np.float32)
    e = replaced(e, target_entropy=h)
    chosen = [x for x, entropy in zip(t, h, strict=True) if x <= np.quantile(t, 0.4) and entropy < 2]
    assert likelihood.surp(e) == pytest.approx(np.mean(chosen))
    assert likelihood.surp(replaced(e, target_entropy=np.full(20, 9, np.float32))) == 0.0


def test_gap_k_averages_the_lowest_windows() -> None:
    e = evidence(30, 4)
    gaps = e.tokens.target_logp.astype(float) - e.tokens.top_logp[:, 0]
    windows = sorted(np.mean(gaps[i : i + 6]) for i in range(25))
    assert likelihood.gap_k(e) == pytest.approx(np.mean(windows[:5]), rel=1e-5)


# SURP looks at a few confident positions only, which a gain on every token need not raise.
@pytest.mark.parametrize("name", [name for name in FAST if name != "surp"])
def test_members_score_higher(name: str) -> None:
    members = [score_evidence(evidence(60, s, gain=1.0), [name])[name] for s in range(60)]
    others = [score_evidence(evidence(60, s + 500), [name])[name] for s in range(60)]
    assert np.mean([m > o for m in members for o in others]) > 0.55


@pytest.mark.parametrize("name", FAST)
class TestContract:
    """What every fast attack promises."""

    def test_a_text_without_positions_is_nan(self, name: str) -> None:
        assert np.isnan(score_evidence(evidence(0), [name])[name])

    def test_nan_statistics_are_nan_and_never_a_score(self, name: str) -> None:
        e = evidence(8)
        broken = e.tokens.target_logp.copy()
        broken[3] = np.nan
        assert np.isnan(score_evidence(replaced(e, target_logp=broken), [name])[name])

    def test_impossible_tokens_leave_the_score_finite(self, name: str) -> None:
        e = evidence(8)
        logp = e.tokens.target_logp.copy()
        logp[2] = -np.inf
        assert np.isfinite(score_evidence(replaced(e, target_logp=logp), [name])[name])

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_short_texts_are_scored_or_nan(self, name: str, n: int) -> None:
        assert isinstance(score_evidence(evidence(n), [name])[name], float)

    def test_documented_with_source(self, name: str) -> None:
        assert ATTACKS[name].summary.endswith((".", ")", ","))
        assert ATTACKS[name].source


def test_selection() -> None:
    assert "lowercase" not in select_attacks("fast")
    assert "ltmia" in select_attacks("fast")
    assert set(select_attacks("all")) == set(ATTACKS)
    assert select_attacks("wbc, loss") == ("loss", "wbc")
    with pytest.raises(ConfigError, match="did you mean 'ez_mia'"):
        select_attacks("ez_mai")


class Bigram:
    """A real, small probe: a character bigram model with add-one smoothing."""

    def __init__(self, corpus: str) -> None:
        self.pairs = [(a, b) for a, b in pairwise(corpus)]

    def mean_losses(self, texts, prefix=""):
        def cost(a: str, b: str) -> float:
            same = sum(x == a for x, _ in self.pairs)
            return -np.log((self.pairs.count((a, b)) + 1) / (same + 256))

        def mean(text: str) -> float:
            joined = prefix[-1:] + text
            losses = [cost(a, b) for a, b in pairwise(joined)]
            return float(np.mean(losses)) if losses else np.nan

        return np.array([mean(text) for text in texts])

    def gradient_norms(self, texts):
        return np.array([float(len(set(text))) for text in texts])

    def neighbours(self, text, n):
        return [text.replace(c, "q") for c in sorted(set(text))[:n]]


def test_slow_attacks_follow_their_formulas() -> None:
    probe, texts = Bigram("the cat sat on the mat"), ["the cat", "zqxj", ""]
    shots = probing.Shots(nonmembers=("abc", "def"), members=("the",))
    own = probe.mean_losses(texts)
    np.testing.assert_allclose(probing.recall(probe, texts, shots), probe.mean_losses(texts, "abcdef") / own)
    np.testing.assert_allclose(
        probing.con_recall(probe, texts, shots),
        (probe.mean_losses(texts, "abcdef") - probe.mean_losses(texts, "the")) / own,
    )
    np.testing.assert_allclose(
        probing.lowercase(probe, ["The Cat"], shots), [own[0] / probe.mean_losses(["The Cat"])[0]]
    )
    assert np.isnan(probing.neighbourhood(probe, texts, shots)[2])
    assert probing.neighbourhood(probe, texts, shots)[0] > probing.neighbourhood(probe, texts, shots)[1]
    np.testing.assert_array_equal(probing.gradient_norm(probe, ["ab", "abc"], shots), [-2.0, -3.0])
