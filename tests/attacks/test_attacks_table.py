"""The table of attacks, and how attacks are chosen from it."""

import subprocess
import sys

import numpy as np
import pytest

from ltmia.attacks.evidence import TextEvidence, TokenFrequencies
from ltmia.attacks.selection import fast_attacks, score_evidence, select_attacks
from ltmia.attacks.table import ATTACKS, CONTROL, EXCESS, LEARNED, WEIGHTS
from ltmia.errors import ConfigError
from ltmia.features.statistics import empty_statistics, named_statistics

FAST = {
    "loss", "zlib", "difference", "ratio", "min_k", "min_k_plus_plus", "dc_pdd", "surp", "gap_k", "ez_mia", "wbc",
}  # fmt: skip
PAIRS = {"premia_pair", "premia_chosen", "premia_rejected"}
SLOW = {"lowercase", "recall", "con_recall", "neighbourhood", "gradient_norm"}


def test_every_attack_of_the_method_is_there() -> None:
    groups = {
        group: {n for n, a in ATTACKS.items() if a.group == group}
        for group in ("fast", "slow", "pairs", "set", "learned", "weights", "control")
    }
    assert groups == {
        "fast": FAST,
        "slow": SLOW,
        "pairs": PAIRS,
        "set": {EXCESS},
        "learned": {LEARNED},
        "weights": set(WEIGHTS),
        "control": {CONTROL},
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_rows_are_complete(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.name == name
    assert attack.summary.startswith(("Return ", "Control: "))
    assert attack.summary.endswith((".", ","))
    assert attack.title
    assert attack.needs
    assert "/" in attack.passes
    assert "arXiv" in attack.source or "EMNLP" in attack.source or name in (EXCESS, *WEIGHTS)


def test_titles_tell_attacks_apart() -> None:
    assert len({attack.title for attack in ATTACKS.values()}) == len(ATTACKS)


def test_groups() -> None:
    assert set(select_attacks("fast")) == FAST | {EXCESS, LEARNED, CONTROL}
    assert select_attacks("all") == tuple(name for name in ATTACKS if name not in (*WEIGHTS, *PAIRS))
    assert set(select_attacks("fast", pairs=True)) == set(select_attacks("fast")) | PAIRS
    assert select_attacks("recorded", pairs=True) == select_attacks("recorded")
    assert set(fast_attacks(select_attacks("all"))) == FAST
    assert set(select_attacks("recorded")) == {n for n, attack in ATTACKS.items() if attack.recorded}
    assert set(select_attacks("fast,recall")) == FAST | {EXCESS, LEARNED, CONTROL, "recall"}


@pytest.mark.parametrize("wanted", ["wbc,loss", " wbc , loss,", ["wbc", "loss"], "loss,wbc,loss"])
def test_names_come_once_in_the_tables_order(wanted: str | list[str]) -> None:
    assert select_attacks(wanted) == ("loss", "wbc")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("ez_mai", "'ez_mia'"),
        ("Min-K", "'min_k'"),
        ("mink", "'min_k'"),
        ("neighborhood", "'neighbourhood'"),
        ("fats", "'fast'"),
    ],
)
def test_a_wrong_name_is_told_what_is_near_and_what_there_is(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown attack '{wrong}'; did you mean .*{near}") as raised:
        select_attacks(f"loss,{wrong}")
    assert all(name in str(raised.value) for name in ATTACKS)


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_nothing_is_not_a_choice(nothing: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="no attack is named"):
        select_attacks(nothing)


def test_only_fast_attacks_score_evidence() -> None:
    nothing = TextEvidence(
        text="",
        tokens=named_statistics(empty_statistics(0, 3)),
        token_ids=np.zeros(0, np.int32),
        token_frequencies=TokenFrequencies.from_counts(np.zeros(9, np.int64)),
    )
    assert score_evidence(nothing, []) == {}
    for name in ("recall", CONTROL, LEARNED):
        with pytest.raises(ConfigError, match=f"{name} is not computed in the shared pass"):
            score_evidence(nothing, [name])
    with pytest.raises(ConfigError, match="unknown attack"):
        score_evidence(nothing, ["los"])


def test_the_table_needs_neither_torch_nor_hugging_face() -> None:
    code = "import sys, ltmia.attacks.table; assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
