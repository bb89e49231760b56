"""Long texts are classified window by window, and windows beyond what was trained on count little."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltmia.auditing.checks import _length_read
from ltmia.auditing.token_table import _attributions
from ltmia.classifier.combinations import Combination, gather_inputs
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.classifier.training import TrainingConfig
from ltmia.classifier.windows import WindowLogits, classify_store, cut, windows_of
from ltmia.evaluation.roc import auc
from ltmia.features.statistics import token_statistics
from ltmia.features.store import FeatureStore
from ltmia.records import RaggedStatistics, Texts
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.stored_scores import read_scores
from planted_stores import make_store

WINDOW = 128
PLAIN, PROMPTED = (Texts(texts=("one", "two"), ids=("0", "1"), starts=starts) for starts in (None, (0, 2)))


@pytest.fixture(scope="module")
def classifier() -> MembershipClassifier:
    found = shipped_classifier("lite")
    assert found.window == WINDOW
    return found


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory: pytest.TempPathFactory) -> Combination:
    """Texts of 300 to 420 positions, of which the first 128 were trained on."""
    folder = tmp_path_factory.mktemp("half") / "store"
    return Combination(make_store(folder, gain=0.15, seed=3, lengths=(300, 420), trained=WINDOW))


@pytest.fixture(scope="module")
def whole_trained(tmp_path_factory: pytest.TempPathFactory) -> Combination:
    folder = tmp_path_factory.mktemp("whole") / "store"
    return Combination(make_store(folder, gain=0.15, seed=3, lengths=(300, 420)))


@given(lengths=st.lists(st.integers(0, 40), max_size=8), size=st.integers(1, 20))
def test_windows_are_the_runs_of_each_text(lengths: list[int], size: int) -> None:
    n, vocab = sum(lengths), 7
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, max(n, 1), vocab)).astype(np.float32)
    tokens = token_statistics(*map(_tensor, logits), _tensor(rng.integers(0, vocab, max(n, 1))), 3).slice(0, n)
    whole = RaggedStatistics(tokens=tokens, offsets=np.cumsum([0, *lengths]), vocab_size=vocab)
    windows, counts = cut(whole, size)
    expected = [text.slice(i, min(i + size, len(text))) for text in whole for i in range(0, max(len(text), 1), size)]
    assert [len(window) for window in windows] == [len(window) for window in expected]
    for found, true in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(found.target_logp, true.target_logp)
    assert counts.tolist() == [max(-(-length // size), 1) for length in lengths]


def _tensor(values: np.ndarray):
    import torch

    return torch.from_numpy(values)


def test_texts_of_one_window_have_the_logit_of_the_whole(tmp_path: Path, classifier: MembershipClassifier) -> None:
    store = FeatureStore(make_store(tmp_path / "s", gain=1.0, seed=1, n=30, lengths=(WINDOW - 2, WINDOW + 1)))
    found = classify_store(classifier, store)
    expected = classifier.predict_logit(gather_inputs(store, np.arange(30), classifier.feature_version))
    np.testing.assert_array_equal(found.pooled, expected)
    assert found.n_telling is None


def test_a_long_text_has_the_weighted_mean_of_its_windows(
    half_trained: Combination, classifier: MembershipClassifier
) -> None:
    store = half_trained.store
    found, n_tokens = classify_store(classifier, store), store.texts["n_tokens"].to_numpy()
    assert found.weights[0] > found.weights[1] > 0
    for row in (0, 17, 119):
        inputs = windows_of(classifier, store, np.array([row]))
        logits = classifier.predict_logit(inputs.features)
        counts = [min(WINDOW, n_tokens[row] - start) for start in range(0, n_tokens[row], WINDOW)]
        expected = np.average(logits, weights=counts * found.weights[: len(counts)])
        assert found.pooled[row] == pytest.approx(expected, abs=1e-6)


def test_what_was_not_trained_on_counts_little(
    half_trained: Combination, whole_trained: Combination, classifier: MembershipClassifier
) -> None:
    def measured(combination: Combination, logits: np.ndarray) -> float:
        return auc(logits[combination.members], logits[combination.nonmembers])

    half, whole = (classify_store(classifier, one.store) for one in (half_trained, whole_trained))
    at_once = classifier.predict_logit(gather_inputs(half_trained.store, np.arange(120), classifier.feature_version))
    assert half.n_telling == WINDOW
    assert measured(half_trained, half.pooled) > measured(half_trained, at_once) + 0.05
    assert measured(half_trained, half.pooled) > measured(half_trained, half.logits[:, 0]) - 0.02
    assert whole.n_telling is None
    assert len(set(whole.weights.tolist())) == 1
    assert measured(whole_trained, whole.pooled) > measured(whole_trained, whole.logits[:, 0])


def test_the_check_says_how_far_texts_tell(
    half_trained: Combination, whole_trained: Combination, classifier: MembershipClassifier, tmp_path: Path
) -> None:
    short = FeatureStore(make_store(tmp_path / "short", gain=1.0, seed=1, n=30))
    few = FeatureStore(make_store(tmp_path / "few", gain=1.0, seed=1, n=10, lengths=(300, 310)))
    found = {}
    for name, store in {"half": half_trained.store, "whole": whole_trained.store, "short": short, "few": few}.items():
        found[name] = _length_read(read_scores(store, classifier, clock=ExtractionClock()), PLAIN)
    assert {name: check.status for name, check in found.items()} == {
        "half": "warning", "whole": "ok", "short": "ok", "few": "not_measured",
    }  # fmt: skip
    assert "`max_length=128`" in found["half"].sentence
    assert found["half"].details == {"tokens_that_tell": WINDOW}
    alone = read_scores(half_trained.store, None, clock=ExtractionClock())
    assert _length_read(alone, PLAIN).status == "not_measured"
    prompted = _length_read(read_scores(half_trained.store, classifier, clock=ExtractionClock()), PROMPTED)
    assert "128 tokens after the prompt" in prompted.sentence
    assert "`max_length` of the prompts' tokens and 128 more" in prompted.sentence


def table(spreads: list[float], n_texts: int, seed: int = 0) -> WindowLogits:
    drawn = np.random.default_rng(seed).normal(size=(n_texts, len(spreads))) * spreads
    return WindowLogits.of(list(drawn), np.full(n_texts, WINDOW * len(spreads)), WINDOW)


@pytest.mark.parametrize("n_texts", [30, 200, 2000])
def test_windows_that_vary_alike_mostly_weigh_the_same(n_texts: int) -> None:
    """Of 100 draws of equal windows, few have another weight anywhere, and none is said to tell little."""
    found = [table([1.0] * 4, n_texts, seed) for seed in range(100)]
    assert sum(len(set(one.weights.tolist())) > 1 for one in found) <= 12
    assert sum(one.n_telling is not None for one in found) <= 3


@pytest.mark.parametrize("n_short", [40, 100])
def test_long_texts_may_be_others_than_short_ones(n_short: int) -> None:
    """All windows of members were trained on, and hardly a non-member is as long; or short texts vary more."""
    rng = np.random.default_rng(0)
    long = list(rng.normal(3, 1, (100, 4)))
    for short in (rng.normal(0, 1, (n_short, 1)), rng.normal(3, 3, (n_short, 1))):
        n_tokens = np.array([4 * WINDOW] * 100 + [100] * n_short)
        found = WindowLogits.of([*long, *short], n_tokens, WINDOW)
        assert len(set(found.weights.tolist())) == 1
        assert found.n_telling is None


@pytest.mark.parametrize("n_texts", [20, 50, 200, 2000])
@pytest.mark.parametrize("window", range(3))
def test_one_text_unlike_all_others_does_not_decide(n_texts: int, window: int) -> None:
    found = table([1.0] * 3, n_texts).logits
    found[7, window] = 100.0
    again = WindowLogits.of(list(found), np.full(n_texts, 3 * WINDOW), WINDOW)
    assert again.n_telling is None


@given(order=st.permutations(range(60)), spreads=st.lists(st.floats(0.5, 3), min_size=1, max_size=5))
def test_weights_fall_and_do_not_depend_on_the_order_of_texts(order: list[int], spreads: list[float]) -> None:
    found = table(spreads, 60)
    assert (np.diff(found.weights) <= 0).all()
    assert (found.weights > 0).all()
    again = WindowLogits.of(list(found.logits[order]), np.full(60, WINDOW * len(spreads)), WINDOW)
    np.testing.assert_allclose(again.weights, found.weights)
    np.testing.assert_allclose(again.pooled, found.pooled[order])


def test_few_texts_equal_logits_and_unscorable_texts() -> None:
    assert table([3.0, 1.0], 19).weights.tolist() == [1.0, 1.0]
    same = WindowLogits.of([[2.0, 2.0]] * 50, np.full(50, 200), WINDOW)
    assert same.weights.tolist() == [1.0, 1.0]
    assert same.pooled == pytest.approx(2.0)
    broken = WindowLogits.of([[1.0], [np.nan], [2.0, np.nan], [2.0, 4.0]], np.array([5, 0, 200, 256]), WINDOW)
    np.testing.assert_array_equal(broken.pooled, [1.0, np.nan, np.nan, 3.0])
    assert [len(row) for row in broken.lists()] == [1, 1, 1, 2]
    again = WindowLogits.of(broken.lists(), np.array([5, 0, 200, 256]), WINDOW)
    np.testing.assert_array_equal(again.pooled, broken.pooled)
    assert WindowLogits.of([], np.zeros(0, np.int64), WINDOW).pooled.shape == (0,)


def test_contributions_of_tokens_are_shared_as_the_windows_are(
    half_trained: Combination, classifier: MembershipClassifier
) -> None:
    scored = read_scores(half_trained.store, classifier, clock=ExtractionClock())
    assert scored.windows is not None
    rows = np.array([5, 80])
    found = _attributions(classifier, scored.windows, scored, rows)
    for row, tokens in zip(rows, found, strict=True):
        assert len(tokens) == scored.n_tokens[row]
        inputs = windows_of(classifier, half_trained.store, np.array([row]))
        sums = classifier.attribute(inputs.features).sum(axis=1)
        assert tokens.sum() == pytest.approx(sums @ scored.windows.shares[row][: len(sums)], abs=1e-4)


def test_windows_are_as_long_as_the_longest_training_text(tmp_path: Path) -> None:
    stores = [Combination(make_store(tmp_path / str(n), gain=1.0, seed=n, n=20, lengths=(n, n + 1))) for n in (60, 200)]
    config = TrainingConfig(epochs=1)
    fitted = MembershipClassifier(feature_version="lite").fit(stores, config=config)
    assert fitted.window == 200
    fitted.save_pretrained(tmp_path / "saved")
    again = MembershipClassifier.from_pretrained(tmp_path / "saved")
    assert again.window == 200
    further = MembershipClassifier.going_on_from(again).fit(stores[:1], config=config)
    assert further.window == 200
