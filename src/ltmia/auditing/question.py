"""What is asked about two sets of texts, with which options, and the form of the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from matplotlib.axes import Axes

from ltmia.attacks.multi_pass import Shots
from ltmia.attacks.table import CONTROL, Observer
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.update import ObserverChoice
from ltmia.evaluation.calibration import AuditDecisions
from ltmia.evaluation.controls import ControlScores
from ltmia.evaluation.results import AttackResult, Measure, ObserverResult, Results
from ltmia.models.batching import BatchSize
from ltmia.report.notebook import results_html, roc_axes

Scores = Mapping[str, Float64[np.ndarray, " texts"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Options of `audit` and of `score`: they decide the numbers."""

    classifier: str | None = None
    """"full" or "lite", which are part of this package, a folder or a hub id; full when None."""
    fdr: float = 0.05
    """False discovery rate to flag records at."""
    max_length: int = 128
    """Tokens read of each text."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass."""
    observer: ObserverChoice = "logprobs"
    """What an attacker sees. "logprobs": an endpoint; "weights": both models; "auto": the strongest that can be had.

    The weights have to be asked for: reading them takes longer than scoring, and they are not yet measured enough."""
    seed: int = 0
    """Seed of resampling, folds, permutations and calibration split."""
    chat_day: str | None = None
    """Day that stands in the conversations, where the chat template wrote one; see `ChatTemplate.day_told`."""
    overwrite: bool = False
    """Replace what a run with other settings, or of other texts, left in the folder; decides no number."""

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "overwrite"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found, and where it is written."""

    results: Results
    records: pa.Table
    folder: Path

    def plot_roc(self, axes: Axes | None = None) -> Axes:
        """Draw the ROC curves of the strongest attacks and the control, both axes logarithmic; return the axes.

        Raises:
            DataError: If membership is not known, as after `score`.
        """
        return roc_axes(self.results, self.records, axes)

    def _repr_html_(self) -> str:
        return results_html(self.results, self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the scores alone say."""

    scores: Scores
    """Scores that go into the records, by attack."""
    attacks: Mapping[str, AttackResult]
    """How well each attack tells members from non-members; empty where membership is not known."""
    control: ControlScores
    control_auc: Measure
    deciding: Mapping[Observer, str]
    """The attack that decides for each observer."""
    decided: Mapping[str, AuditDecisions]
    """Decisions of those attacks; of the control, where there is no other attack."""
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
    """Return the attack that decides for the strongest observer; the control where no attack takes part."""
    return deciding.get("weights") or deciding.get("logprobs") or CONTROL


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about two sets of texts."""

    kind: Literal["audit", "score"]
    sets: TextSets
    config: JudgeConfig
    attacks: Sequence[str]
    """Attacks whose scores answer the question."""
    also_scored: Sequence[str] = ()
    """Attacks that the checks need besides."""
    shots: Shots | None = None
    """Texts of known membership for the attacks that take several passes; None: none of those takes part."""
    measure: Callable[[TextSets, Scores], Measured]
    """Turns scores into figures and decisions."""
    reveal: bool = False
    """Write texts and tokens into the files."""
