"""Copies of a text are no further evidence."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ltmia.auditing.measured import decide
from ltmia.auditing.text_sets import join_sets
from ltmia.evaluation.calibration import judge_candidates
from ltmia.evaluation.set_test import collection_test
from ltmia.records import Texts

words = st.sampled_from(["a b", "A  b", "a b c", "", " ", "d", "D"])


def texts(rows: list[str], starts: list[int] | None = None) -> Texts:
    ids = tuple(str(i) for i in range(len(rows)))
    return Texts(texts=tuple(rows), ids=ids, starts=None if starts is None else tuple(starts))


@given(st.lists(words, min_size=1, max_size=8), st.lists(words, min_size=1, max_size=8))
def test_the_first_equal_text_of_the_same_set_is_the_original(judged: list[str], others: list[str]) -> None:
    sets = join_sets(texts(judged), texts(others), "members")
    rows = [*judged, *others]
    for row, text in enumerate(rows):
        key = text.lower().split()
        own = range(len(judged)) if row < len(judged) else range(len(judged), len(rows))
        equal = [i for i in own if rows[i].lower().split() == key]
        assert sets.originals[row] == (equal[0] if key else row)
    once = sets.once(np.zeros(len(rows)))
    assert np.isnan(once).tolist() == sets.repeats.tolist()


def test_a_text_scored_from_another_place_is_another_text() -> None:
    sets = join_sets(texts(["a b c", "a b c"], [0, 2]), texts(["x"]), "members")
    assert not sets.repeats.any()
    assert sets.units is None


def test_three_hundred_copies_of_an_unused_text_count_as_one() -> None:
    rng = np.random.default_rng(0)
    nonmembers = rng.normal(size=400)
    sets = join_sets(texts(["one text"] * 300), texts([f"other {i}" for i in range(400)]), "candidates")
    flagged, rejected = 0, 0
    for seed in range(200):
        scores = np.concatenate([np.full(300, rng.normal()), nonmembers])
        candidates, others = sets.split(sets.once(scores))
        found = judge_candidates(candidates, others, attack="loss", fdr=0.05)
        assert found.summary.n_judged == 1
        flagged += found.summary.n_flagged
        rejected += (collection_test(candidates, others, seed=seed).p_value or 1) <= 0.05 if seed < 20 else 0
    assert flagged <= 20, "5 % of 200 is 10"
    assert rejected <= 4, "5 % of 20 is 1"
    assert sets.units is not None
    assert len(np.unique(sets.split_units[0])) == 1


def test_a_group_whose_texts_another_group_has_too_is_judged_and_copies_within_a_group_count_once() -> None:
    texts = [f"text {i}" for i in range(5)]
    judged = Texts(
        texts=(*texts, *(text.upper() for text in texts), "text 5", "Text 5"),
        ids=tuple(f"m{i}" for i in range(12)),
        groups=("ann",) * 5 + ("bob",) * 5 + ("cat",) * 2,
    )
    others = Texts(
        texts=tuple(f"other {i}" for i in range(40)),
        ids=tuple(f"n{i}" for i in range(40)),
        groups=tuple(f"g{i // 5}" for i in range(40)),
    )
    sets = join_sets(judged, others, "candidates")
    found = decide(sets, np.arange(52.0)[::-1], attack="loss", fdr=0.5, seed=0)
    assert found.groups is not None
    assert found.groups.n_texts.tolist() == [5, 5, 1]
    assert found.groups.decisions.p_values[:2].tolist() == [1 / 9, 1 / 9]
    assert found.summary.n_judged == 6
