"""Every fast attack against its definition, computed here from raw logits, and one contract that all of them keep."""

import zlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from ltmia.attacks import likelihood, reference
from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.selection import fast_attacks, score_evidence
from ltmia.attacks.table import ATTACKS
from ltmia.features.statistics import token_statistics
from ltmia.records import RaggedStatistics, TokenStatistics

VOCAB = 40
FAST = fast_attacks(tuple(ATTACKS))
COUNTS = np.random.default_rng(5).integers(0, 50, VOCAB)
FREQUENCIES = TokenFrequencies.from_counts(COUNTS)


class Case:
    """Raw logits of both models for one text, and what is made of them."""

    def __init__(
        self, n: int, seed: int = 0, *, tied: bool = False, impossible: float = 0.0, text: str = "a text"
    ) -> None:
        rng = np.random.default_rng(seed)
        # Peaked enough that the true token is often, but not always, the most likely one.
        self.ids = rng.integers(0, VOCAB, n)
        self.b = rng.normal(0, 2, (n, VOCAB))
        self.b[np.arange(n), self.ids] += rng.exponential(4, n)
        self.a = self.b + rng.normal(0.1, 0.7, (n, VOCAB))
        if tied:
            self.a, self.b = self.a.round(), self.b.round()
        for logits in (self.a, self.b):
            rows = np.flatnonzero(rng.random(n) < impossible)
            logits[rows, self.ids[rows]] = -np.inf
        self.a, self.b = self.a.astype(np.float32), self.b.astype(np.float32)
        self.text = text

    @property
    def evidence(self) -> TextEvidence:
        statistics = token_statistics(torch.tensor(self.a), torch.tensor(self.b), torch.tensor(self.ids), 5)
        return text_evidence(statistics, self.ids, self.text)

    def logp(self, logits: np.ndarray) -> np.ndarray:
        """Log-probability of the true tokens in float64; impossible ones at the documented floor."""
        chosen = log_softmax(logits.astype(float), 1)[np.arange(len(logits)), self.ids]
        return np.maximum(chosen, -1000.0)

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the target's log p under p."""
        log_p = log_softmax(self.a.astype(float), 1)
        p, finite = np.exp(log_p), np.where(np.isfinite(log_p), log_p, 0.0)
        mean = (p * finite).sum(1)
        return mean, np.sqrt((p * (finite - mean[:, None]) ** 2).sum(1))


def text_evidence(statistics: TokenStatistics, ids: np.ndarray, text: str = "a text") -> TextEvidence:
    return TextEvidence(text=text, tokens=statistics, token_ids=ids.astype(np.int32), token_frequencies=FREQUENCIES)


def replaced(given: TextEvidence, **columns: np.ndarray) -> TextEvidence:
    kept = {f.name: getattr(given.tokens, f.name) for f in fields(TokenStatistics)}
    return text_evidence(TokenStatistics(**{**kept, **columns}), given.token_ids, given.text)


cases = st.builds(
    Case,
    st.integers(2, 60),
    st.integers(0, 9999),
    tied=st.booleans(),
    impossible=st.sampled_from([0.0, 0.2]),
)


def close(value: float) -> object:
    """Statistics are float32, the oracle float64."""
    return pytest.approx(value, rel=2e-4, abs=2e-5)


def lowest_mean(values: np.ndarray, fraction: float) -> float:
    return np.mean(sorted(values)[: max(1, int(fraction * len(values)))])


class TestDefinitions:
    @given(cases)
    def test_loss_zlib_difference_ratio(self, case: Case) -> None:
        e, t, r = case.evidence, -case.logp(case.a).mean(), -case.logp(case.b).mean()
        assert likelihood.loss(e) == close(-t)
        assert likelihood.zlib(e) == close(-t / len(zlib.compress(b"a text")))
        assert likelihood.difference(e) == close(r - t)
        assert likelihood.ratio(e) == close(-t / r)

    @given(cases, st.sampled_from([0.05, 0.2, 0.6, 1.0]))
    def test_min_k(self, case: Case, fraction: float) -> None:
        assert likelihood.min_k(case.evidence, fraction) == close(lowest_mean(case.logp(case.a), fraction))

    @given(cases, st.sampled_from([0.1, 0.2, 1.0]))
    def test_min_k_plus_plus(self, case: Case, fraction: float) -> None:
        mean, spread = case.moments
        z = (case.logp(case.a) - mean) / spread
        assert likelihood.min_k_plus_plus(case.evidence, fraction) == pytest.approx(
            lowest_mean(z, fraction), rel=2e-3, abs=2e-4
        )

    @given(cases, st.sampled_from([0.01, 0.5]))
    def test_dc_pdd(self, case: Case, ceiling: float) -> None:
        frequency = {v: (c + 1) / (sum(COUNTS) + VOCAB) for v, c in enumerate(COUNTS)}
        terms, seen = [], set()
        for v, logp in zip(
            case.ids, log_softmax(case.a.astype(float), 1)[np.arange(len(case.ids)), case.ids], strict=True
        ):
            if v not in seen:
                terms.append(min(np.exp(logp) * np.log(1 / frequency[v]), ceiling))
            seen.add(v)
        assert likelihood.dc_pdd(case.evidence, ceiling) == close(np.mean(terms))

    @given(cases)
    def test_surp(self, case: Case) -> None:
        logp, entropy = case.evidence.target_logp, case.evidence.tokens.target_entropy
        limit = sorted(logp)[max(1, int(0.4 * len(logp))) - 1]
        chosen = [x for x, h in zip(logp, entropy, strict=True) if x <= limit and h < 2]
        assert likelihood.surp(case.evidence) == pytest.approx(np.mean(chosen) if chosen else np.nan, nan_ok=True)

    @given(cases)
    def test_gap_k(self, case: Case) -> None:
        top = log_softmax(case.a.astype(float), 1).max(1)
        gaps = (case.logp(case.a) - top) / case.moments[1]
        n = len(gaps)
        smooth = [gaps[i : i + 3].mean() for i in range(n - 2)] if n >= 3 else gaps
        assert likelihood.gap_k(case.evidence) == pytest.approx(lowest_mean(smooth, 0.2), rel=2e-3, abs=2e-4)

    @given(cases)
    def test_ez_mia(self, case: Case) -> None:
        e = case.evidence
        d = e.target_logp - e.reference_logp
        errors = [t for t in range(1, len(d)) if (case.a[t] > case.a[t, case.ids[t]]).any()]
        gain, lost = sum(max(d[t], 0) for t in errors), sum(max(-d[t], 0) for t in errors)
        published = reference.ez_mia(e, "published_code")
        if lost > 0:
            assert reference.ez_mia(e) == pytest.approx(gain / lost)
            assert published == pytest.approx(gain / lost if len(errors) >= 2 else 0.0)
        else:
            assert reference.ez_mia(e) >= 1e20
            assert published == 0.0

    @given(cases, st.sampled_from([reference.WBC_WINDOWS, reference.WBC_EQ12, (1,), (100,)]))
    def test_wbc(self, case: Case, windows: tuple[int, ...]) -> None:
        d = (case.evidence.target_logp - case.evidence.reference_logp).tolist()
        shares = []
        for width in (min(w, len(d)) for w in windows):
            sums = [sum(d[i : i + width]) for i in range(len(d) - width + 1)]
            # A sum of nothing but rounding is 0.
            shares.append(np.mean([x > 1e-9 for x in sums]))
        assert reference.wbc(case.evidence, windows) == pytest.approx(np.mean(shares))

    def test_log_probabilities_agree_with_the_oracle(self) -> None:
        case = Case(30, 1, impossible=0.3)
        np.testing.assert_allclose(case.evidence.log_ratio, case.logp(case.a) - case.logp(case.b), atol=1e-4)
        assert (case.evidence.target_logp == -1000.0).any()


@pytest.mark.parametrize("name", FAST)
class TestContract:
    """What every fast attack promises."""

    def test_more_likely_under_the_target_is_never_less_member_like(self, name: str) -> None:
        for seed in range(20):
            e = Case(30, seed).evidence
            logp = np.minimum(e.tokens.target_logp, -0.5)
            before, after = (
                score_evidence(replaced(e, target_logp=logp + np.float32(gain)), [name])[name] for gain in (0, 0.4)
            )
            assert after >= before or np.isnan(before), seed

    def test_simulated_members_score_higher_on_average(self, name: str) -> None:
        rng = np.random.default_rng(3)
        members, others = [], []
        for seed in range(100):
            e = Case(60, seed).evidence
            gains = rng.exponential(0.3, 60).astype(np.float32)
            members.append(
                score_evidence(replaced(e, target_logp=np.minimum(e.tokens.target_logp + gains, 0)), [name])[name]
            )
            others.append(score_evidence(Case(60, seed + 1000).evidence, [name])[name])
        members, others = (np.array(x)[~np.isnan(x)] for x in (members, others))
        assert np.mean([m > o for m in members for o in others]) > 0.5
        assert np.median(members) > np.median(others)

    @pytest.mark.parametrize("n", [0, 1])
    def test_under_two_positions_is_nan(self, name: str, n: int) -> None:
        assert np.isnan(score_evidence(Case(n).evidence, [name])[name])

    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    def test_short_texts_are_scored(self, name: str, n: int) -> None:
        scores = [score_evidence(Case(n, seed).evidence, [name])[name] for seed in range(20)]
        # SURP alone may find no token to look at.
        assert np.isfinite(scores).all() or (name == "surp" and np.isfinite(scores).any())

    def test_broken_models_are_nan(self, name: str) -> None:
        case = Case(9)
        case.a[4, 7] = np.nan
        assert np.isnan(score_evidence(case.evidence, [name])[name])

    @pytest.mark.parametrize("column", [f.name for f in fields(TokenStatistics) if "rank" not in f.name])
    def test_nan_in_a_column_is_nan_or_not_read(self, name: str, column: str) -> None:
        e = Case(9).evidence
        broken = getattr(e.tokens, column).copy()
        broken[3] = np.nan
        score = score_evidence(replaced(e, **{column: broken}), [name])[name]
        assert np.isnan(score) or score == score_evidence(e, [name])[name]
        if column == "target_logp":
            assert np.isnan(score)

    @given(case=st.builds(Case, st.integers(2, 40), st.integers(0, 9999), impossible=st.sampled_from([0.3, 1.0])))
    def test_impossible_tokens_leave_the_score_finite(self, name: str, case: Case) -> None:
        score = score_evidence(case.evidence, [name])[name]
        assert np.isfinite(score) or (name == "surp" and np.isnan(score))

    def test_certain_and_undecided_models_leave_the_score_finite(self, name: str) -> None:
        case = Case(8)
        case.a[:4] = 0.0  # uniform: log p has no spread
        case.a[4:] = -np.inf
        case.a[np.arange(4, 8), case.ids[4:]] = 0.0  # certain
        score = score_evidence(case.evidence, [name])[name]
        # SURP looks at positions that are both: there is none.
        assert np.isnan(score) if name == "surp" else np.isfinite(score)

    def test_texts_do_not_touch_each_other(self, name: str) -> None:
        texts = [Case(n, n).evidence for n in (2, 17, 5, 60)]
        alone = [score_evidence(e, [name])[name] for e in texts]
        ragged = RaggedStatistics(
            tokens=TokenStatistics.concatenate([e.tokens for e in texts]),
            offsets=np.cumsum([0, 2, 17, 5, 60]).astype(np.int64),
            vocab_size=VOCAB,
        )
        views = [text_evidence(tokens, e.token_ids) for tokens, e in zip(ragged, texts, strict=True)]
        backwards = [score_evidence(e, [name])[name] for e in reversed(views)]
        np.testing.assert_array_equal(alone, backwards[::-1])

    def test_returns_a_plain_float(self, name: str) -> None:
        assert type(score_evidence(Case(12).evidence, [name])[name]) is float


def test_names_may_come_in_any_order() -> None:
    e = Case(20, 4).evidence
    assert score_evidence(e, FAST) == score_evidence(e, FAST[::-1])


class TestTokenTraps:
    """Defects of published Min-K% code, each with the input that shows it."""

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_min_k_takes_one_token_of_a_text_too_short_for_the_fraction(self, n: int) -> None:
        case = Case(n)
        assert likelihood.min_k(case.evidence) == close(case.logp(case.a).min())

    def test_min_k_plus_plus_survives_masked_vocabulary(self) -> None:
        case = Case(20, 1)
        other = (case.ids + 1) % VOCAB
        case.a[np.arange(20), other] = -np.inf
        mean, spread = case.moments
        z = (case.logp(case.a) - mean) / spread
        assert likelihood.min_k_plus_plus(case.evidence) == pytest.approx(lowest_mean(z, 0.2), rel=1e-3)

    def test_min_k_plus_plus_weighs_the_vocabulary_by_probability(self) -> None:
        case = Case(20, 1)
        log_p = log_softmax(case.a.astype(float), 1)
        unweighted = (case.logp(case.a) - log_p.mean(1)) / log_p.std(1)
        assert abs(likelihood.min_k_plus_plus(case.evidence) - lowest_mean(unweighted, 0.2)) > 0.1
