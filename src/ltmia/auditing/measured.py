"""Turns scores of two sets of texts into figures and decisions; `audit` and `score` share these steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float64

from ltmia.attacks.table import ATTACKS, CONTROL, LEARNED, PREFERENCE, WEIGHTS, Observer
from ltmia.auditing.text_sets import TextSets
from ltmia.evaluation.calibration import AuditDecisions, judge_audit, judge_candidates
from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import AttackResult, ObserverResult
from ltmia.evaluation.section import Measure

Scores = Mapping[str, Float64[np.ndarray, " texts"]]
"""Scores of all texts, by attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures and decisions that follow from the scores alone."""

    scores: Scores
    """Scores that go into the records, by attack."""
    attacks: Mapping[str, AttackResult]
    """How well each attack tells members from non-members; empty where membership is not known."""
    control: ControlScores
    control_auc: Measure
    deciding: Mapping[Observer, str]
    """The attack that decides for each observer."""
    decided: Mapping[str, AuditDecisions]
    """Decisions by those attacks; by the control if there is no other attack."""
    epsilon: Measure | None = None

    @property
    def judge(self) -> str:
        """The attack that decides for the strongest observer."""
        return strongest(self.deciding)

    @property
    def decisions(self) -> AuditDecisions:
        """Decisions of the strongest observer."""
        return self.decided[self.judge]

    @property
    def observers(self) -> dict[Observer, ObserverResult]:
        """Decisions of each observer, as the results hold them."""
        return {
            observer: ObserverResult(attack=name, decisions=self.decided[name].summary)
            for observer, name in self.deciding.items()
        }


def strongest(deciding: Mapping[Observer, str]) -> str:
    """Return the attack that decides for the strongest observer; the control if no attack takes part."""
    return next((deciding[observer] for observer in reversed(get_args(Observer)) if observer in deciding), CONTROL)


def judges(names: Iterable[str]) -> dict[Observer, str]:
    """Return the attack that decides for each observer: that on preference pairs or the learned one if it took part."""
    order = [name for name in (*WEIGHTS, PREFERENCE, LEARNED) if name in names]
    order += [name for name in names if name not in (*order, CONTROL)]
    found: dict[Observer, str] = {}
    for name in order:
        found.setdefault(ATTACKS[name].observer, name)
    return found


def measure_scores(sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> AttackResult:
    """Measure how well scores separate the texts to judge from the non-members, with intervals over units."""
    judged_units, nonmember_units = sets.split_units
    return measure_attack(*sets.split(scores), member_groups=judged_units, nonmember_groups=nonmember_units, seed=seed)


def decide(
    sets: TextSets, scores: Float64[np.ndarray, " texts"], *, attack: str, fdr: float, seed: int
) -> AuditDecisions:
    """Flag records by the scores of one attack; repeats of a text are not judged.

    Known members are judged together with half of the non-members; the other half calibrates. For candidates, all
    non-members calibrate.
    """
    judge = judge_audit if sets.judged == "members" else judge_candidates
    in_groups, _ = sets.split(sets.once_in_group(scores))
    return judge(
        *sets.split(sets.once(scores)),
        attack=attack,
        fdr=fdr,
        groups=sets.split_groups,
        in_groups=in_groups,
        seed=seed,
    )
