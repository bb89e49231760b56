"""docs/attacks.md against the table and the code: every attack, what it needs, its source, and its formula."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from ltmia.attacks import multi_pass
from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.multi_pass import Shots
from ltmia.attacks.selection import score_evidence
from ltmia.attacks.table import ATTACKS, CHECKPOINTS, CONTROL, EXCESS, LEARNED, WITH_WEIGHTS
from ltmia.data.reading import read_texts
from ltmia.evaluation import controls
from ltmia.evaluation.controls import _fold_scores
from ltmia.features.store import FeatureStore
from ltmia.models.loading import load_pair
from ltmia.models.multi_pass import PairQueries
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.scoring.extraction import ExtractionConfig, count_tokens, extract_batches
from ltmia.weights import combination
from quick import SHIPPED_TREES

PAGE = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text("utf-8")


@pytest.fixture(scope="module")
def formulas() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(block, names)
    return names


@pytest.fixture(scope="module")
def pair(materials: Path) -> Pair:
    return load_pair(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts(materials: Path) -> list[str]:
    return [*read_texts(materials / "candidates.jsonl").texts[:6], "Two words, three"]


def test_each_attack_has_a_section_that_says_what_the_table_says() -> None:
    sections = re.findall(
        r"^### `(\w+)`: (.+)\n\n\*\*Needs\*\* (.+)\. \*\*Passes\*\* (.+)\. \*\*Source\*\* (.+)\.$", PAGE, re.M
    )
    assert sorted(sections) == sorted((a.name, a.title, a.needs, a.passes, a.source) for a in ATTACKS.values())
    for name in ATTACKS:
        section = PAGE.split(f"### `{name}`")[1].split("\n### ")[0]
        assert f"def {name}(" in section
        assert name == CONTROL or "**Fails**" in section, f"{name}: say when it fails"


def test_formulas_of_preference_pairs_are_what_runs(formulas: dict[str, Any]) -> None:
    sums = np.array([1.5, -2.0, np.nan]), np.array([-0.5, 3.0, 1.0])
    for name in [name for name, attack in ATTACKS.items() if attack.pairs]:
        np.testing.assert_array_equal(formulas[name](*sums), ATTACKS[name].pairs(*sums), err_msg=name)


def test_formulas_of_the_shared_pass_are_what_runs(formulas: dict[str, Any], pair: Pair, texts: list[str]) -> None:
    fast = tuple(name for name, attack in ATTACKS.items() if attack.fast)
    encoded = encode_texts(pair.tokenizer, texts, max_length=128, vocab_size=pair.vocab_size)
    frequencies = count_tokens(encoded, pair.vocab_size)
    checked = 0
    for batch in extract_batches(pair, texts, ExtractionConfig()):
        for row, tokens in zip(batch.rows, batch.statistics, strict=True):
            ids = encoded[row].ids[1:].astype(np.int32)
            evidence = TextEvidence(text=texts[row], tokens=tokens, token_ids=ids, token_frequencies=frequencies)
            columns = {name: getattr(tokens, name).astype(np.float64) for name in tokens.__slots__}
            shown = SimpleNamespace(
                **columns, text=texts[row], token_ids=ids, frequency=np.exp(frequencies.log_frequency)
            )
            for name, value in score_evidence(evidence, fast).items():
                np.testing.assert_allclose(formulas[name](shown), value, rtol=1e-5, err_msg=name)
                checked += 1
    assert checked == len(fast) * len(texts)


def test_the_formula_of_the_whole_set_is_what_runs(formulas: dict[str, Any], materials: Path) -> None:
    store = FeatureStore(materials / "audit" / "private" / "store")
    stored = store.scores(EXCESS)
    for row in (0, 70, 150):
        text = store.statistics([row])
        assert text.expectation is not None
        said = formulas[EXCESS](text.tokens, text.expectation.log_ratio, text.expectation.spread)
        # What is stored was computed before the expectation was rounded to float16.
        np.testing.assert_allclose(said, stored[row], atol=2e-3)


def test_the_formula_of_both_observers_is_what_runs(formulas: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=120)
    alpha, error = score + rng.normal(size=120), np.full(120, 0.4)
    for share in combination.SHARES:
        with monkeypatch.context() as patch:
            patch.setattr(combination, "SHARES", (share,))
            added = combination.add_output_score(alpha, error, score)
        np.testing.assert_allclose(formulas[WITH_WEIGHTS](alpha, error, score, share), added, atol=1e-3)


def test_the_formula_of_checkpoints_adds_odds(formulas: dict[str, Any]) -> None:
    log_odds = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(formulas[CHECKPOINTS](log_odds), logsumexp(log_odds, axis=0), rtol=1e-12)


def test_formulas_of_the_other_passes_are_what_runs(formulas: dict[str, Any], pair: Pair, texts: list[str]) -> None:
    queries = PairQueries(pair, max_length=128, batch_size=16)
    few = texts[:2]
    shots = Shots(nonmembers=(texts[2][:60],), members=(texts[3][:60],))

    def loss_of(text: str, after: str = "") -> float:
        return float(queries.token_losses([text], after)[0].mean())

    for i, text in enumerate(few):
        said = {
            "lowercase": formulas["lowercase"](text, loss_of),
            "recall": formulas["recall"](text, loss_of, shots.nonmembers),
            "con_recall": formulas["con_recall"](text, loss_of, shots.nonmembers, shots.members),
            "neighbourhood": formulas["neighbourhood"](text, loss_of, queries.neighbours(text, multi_pass.NEIGHBOURS)),
            "gradient_norm": _gradient_norm(formulas, pair, text),
        }
        assert set(said) == {name for name, attack in ATTACKS.items() if attack.slow}
        for name, value in said.items():
            np.testing.assert_allclose(value, ATTACKS[name].slow(queries, few, shots)[i], rtol=1e-4, err_msg=name)


def _gradient_norm(formulas: dict[str, Any], pair: Pair, text: str) -> float:
    ids = torch.tensor(encode_texts(pair.tokenizer, [text], max_length=128, vocab_size=pair.vocab_size)[0].ids)[None]
    parameters = [p for p in pair.target.parameters() if p.requires_grad]
    return formulas["gradient_norm"](pair.target(ids, labels=ids).loss, parameters)


def test_the_control_is_what_runs(formulas: dict[str, Any], materials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "N_TREES", SHIPPED_TREES)
    found = {name: read_texts(materials / f"{name}.jsonl").texts for name in ("train", "held-out")}
    labels = np.array([1] * 40 + [0] * 40)
    train = [*found["train"][:40], *found["held-out"][:40]]
    test = [*found["train"][40:], *found["held-out"][40:]]
    said = formulas[CONTROL](train, labels, test)
    np.testing.assert_array_equal(said, _fold_scores(np.array(train, object), labels, np.array(test, object), 0))


def test_the_learned_attack_is_named_after_its_key() -> None:
    assert LEARNED in ATTACKS
    assert f"`{LEARNED}`" in PAGE
