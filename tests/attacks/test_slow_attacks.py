"""Attacks with passes of their own, on a real, small model: a character model that learns from what it reads."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from ltmia.attacks import multi_pass
from ltmia.attacks.multi_pass import Shots
from ltmia.attacks.table import ATTACKS
from ltmia.errors import ConfigError

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MEMBERS = ("the cat sat on the mat", "a dog ran over the hill", "Seven ships Sailed the sea")
STRANGERS = ("quick zebras jump vexed", "bright vixens fudge wax", "Pack my Box With Jugs")
SHOTS = Shots(nonmembers=("quick vixens vow", "pack wax in zeb"), members=("the cat ran on",))
SLOW = [name for name, attack in ATTACKS.items() if attack.group == "slow"]


class CharacterModel:
    """log p(c | up to three characters before) by smoothed counts over training texts and what was read before."""

    def __init__(self, corpus: Sequence[str], letters: str = LETTERS, window: int = 10_000) -> None:
        self.letters, self.window, self.corpus = letters, window, list(corpus)

    def _rows(self, read: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities of the next character by context."""
        counts = defaultdict(lambda: np.full(len(self.letters), 0.1))
        for text in read:
            for i in range(1, len(text)):
                counts[text[max(0, i - 3) : i]][self.letters.index(text[i])] += 1
        return defaultdict(
            lambda: np.full(len(self.letters), 1 / len(self.letters)), {c: row / row.sum() for c, row in counts.items()}
        )

    def token_losses(self, texts: Sequence[str], prefix: str = "") -> list[np.ndarray]:
        rows = self._rows([*self.corpus, prefix])
        fits = [text if len(prefix) + len(text) <= self.window else "" for text in texts]
        return [-np.log([rows[t[max(0, i - 3) : i]][self.letters.index(t[i])] for i in range(1, len(t))]) for t in fits]

    def gradient_norms(self, texts: Sequence[str], order: float) -> np.ndarray:
        """Gradient of the mean loss by two tensors: the table of logits, and a bias that all contexts share."""
        rows, norms = self._rows(self.corpus), []
        for text in texts:
            table = defaultdict(lambda: np.zeros(len(self.letters)))
            for i in range(1, len(text)):
                context = text[max(0, i - 3) : i]
                truth = np.eye(len(self.letters))[self.letters.index(text[i])]
                table[context] += (rows[context] - truth) / (len(text) - 1)
            by_row = np.array(list(table.values()))
            tensors = (by_row.ravel(), by_row.sum(0)) if len(text) > 1 else (np.array([np.nan]),)
            norms.append(np.mean([np.linalg.norm(tensor, order) for tensor in tensors]))
        return np.array(norms)

    def neighbours(self, text: str, n: int) -> list[str]:
        rng = np.random.default_rng(len(text))
        places = rng.permutation(len(text))[:n]
        return [text[:i] + str(rng.choice(list(self.letters))) + text[i + 1 :] for i in places]


@pytest.fixture
def queries() -> CharacterModel:
    return CharacterModel(MEMBERS * 3)


def mean_loss(queries: CharacterModel, text: str, prefix: str = "") -> float:
    return float(np.mean(queries.token_losses([text], prefix)[0]))


TEXTS = [*MEMBERS, *STRANGERS]


def test_lowercase_is_the_ratio_of_losses(queries: CharacterModel) -> None:
    expected = [mean_loss(queries, text.lower()) / mean_loss(queries, text) for text in TEXTS]
    np.testing.assert_allclose(multi_pass.lowercase(queries, TEXTS, Shots()), expected)
    assert expected[2] > expected[5]


def test_recall_is_the_ratio_of_losses_after_and_without_the_prefix(queries: CharacterModel) -> None:
    prefix = "quick vixens vowpack wax in zeb"
    expected = [mean_loss(queries, text, prefix) / mean_loss(queries, text) for text in TEXTS]
    np.testing.assert_allclose(multi_pass.recall(queries, TEXTS, SHOTS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_con_recall_takes_the_loss_after_members_off(queries: CharacterModel, gamma: float) -> None:
    expected = [
        (mean_loss(queries, text, "".join(SHOTS.nonmembers)) - gamma * mean_loss(queries, text, "".join(SHOTS.members)))
        / mean_loss(queries, text)
        for text in TEXTS
    ]
    np.testing.assert_allclose(multi_pass.con_recall(queries, TEXTS, SHOTS, gamma=gamma), expected)


def test_neighbourhood_is_the_mean_loss_of_neighbours_less_the_loss(queries: CharacterModel) -> None:
    expected = [
        np.mean([mean_loss(queries, near) for near in queries.neighbours(text, 8)]) - mean_loss(queries, text)
        for text in TEXTS
    ]
    np.testing.assert_allclose(multi_pass.neighbourhood(queries, TEXTS, Shots(), n=8), expected)


@pytest.mark.parametrize("order", [1.0, 2.0, np.inf])
def test_gradient_norm_is_higher_for_texts_that_pull_less(queries: CharacterModel, order: float) -> None:
    scores = multi_pass.gradient_norm(queries, TEXTS, Shots(), order=order)
    np.testing.assert_array_equal(scores, -queries.gradient_norms(TEXTS, order))
    assert scores[:3].mean() > scores[3:].mean()
    assert (scores < 0).all()


@pytest.mark.parametrize("name", SLOW)
class TestContract:
    """What every slow attack promises."""

    def test_members_score_higher(self, name: str) -> None:
        # All in one case: else only `lowercase` would notice the capitals.
        texts = TEXTS if name == "lowercase" else [text.lower() for text in TEXTS]
        scores = ATTACKS[name].slow(CharacterModel(texts[:3] * 3), texts, SHOTS)
        assert np.mean(scores[:3]) > np.mean(scores[3:])

    def test_one_score_per_text_in_any_order(self, queries: CharacterModel, name: str) -> None:
        forwards = ATTACKS[name].slow(queries, TEXTS, SHOTS)
        backwards = ATTACKS[name].slow(queries, TEXTS[::-1], SHOTS)
        assert forwards.shape == (6,)
        assert forwards.dtype == np.float64
        np.testing.assert_allclose(forwards, backwards[::-1], rtol=1e-12)

    def test_texts_without_two_scored_tokens_are_nan(self, queries: CharacterModel, name: str) -> None:
        scores = ATTACKS[name].slow(queries, ["", "a", MEMBERS[0]], SHOTS)
        if name == "gradient_norm":  # the queries alone knows how many tokens it scored
            scores[:2] = np.where(np.isnan(scores[:2]), np.nan, scores[:2])
        np.testing.assert_array_equal(np.isnan(scores), [True, True, False])

    def test_no_texts_are_no_scores(self, queries: CharacterModel, name: str) -> None:
        assert ATTACKS[name].slow(queries, [], SHOTS).shape == (0,)

    def test_a_text_without_loss_leaves_no_infinity(self, name: str) -> None:
        certain = CharacterModel(["aaaa"], letters="a")
        score = ATTACKS[name].slow(certain, ["aaaa"], Shots(nonmembers=("aa",), members=("a",)))
        assert np.isnan(score) if name in ("lowercase", "recall", "con_recall") else score == 0.0


class TestPrefixTraps:
    """What published (CON-)ReCaLL code gets wrong."""

    def test_a_text_that_is_a_shot_is_not_scored(self, queries: CharacterModel) -> None:
        texts = [SHOTS.nonmembers[0], SHOTS.members[0], MEMBERS[0]]
        np.testing.assert_array_equal(np.isnan(multi_pass.recall(queries, texts, SHOTS)), [True, False, False])
        np.testing.assert_array_equal(np.isnan(multi_pass.con_recall(queries, texts, SHOTS)), [True, True, False])

    @pytest.mark.parametrize("shots", [Shots(), Shots(members=("the cat",))])
    def test_a_prefix_is_needed(self, queries: CharacterModel, shots: Shots) -> None:
        for attack in (multi_pass.recall, multi_pass.con_recall):
            with pytest.raises(ConfigError, match="known non-members"):
                attack(queries, TEXTS, shots)
        with pytest.raises(ConfigError, match="known members"):
            multi_pass.con_recall(queries, TEXTS, Shots(nonmembers=("xyz",)))

    def test_a_text_that_does_not_fit_behind_the_prefix_is_nan_and_not_cut(self) -> None:
        narrow = CharacterModel(MEMBERS, window=55)
        scores = multi_pass.recall(narrow, ["the cat sat on the mat", "a dog ran over the hill and far away"], SHOTS)
        np.testing.assert_array_equal(np.isnan(scores), [False, True])

    def test_prefix_and_text_must_not_be_averaged_together(self) -> None:
        class Careless(CharacterModel):
            def token_losses(self, texts: Sequence[str], prefix: str = "") -> list[np.ndarray]:
                return super().token_losses([prefix + text for text in texts])

        with pytest.raises(ValueError, match="the same positions"):
            multi_pass.recall(Careless(MEMBERS), TEXTS, SHOTS)


def test_neighbourhood_without_neighbours_is_nan() -> None:
    assert np.isnan(multi_pass.neighbourhood(CharacterModel(MEMBERS), list(MEMBERS), Shots(), n=0)).all()
