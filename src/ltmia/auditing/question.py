"""The question an audit or a score asks, its options, and its answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from matplotlib.axes import Axes

from ltmia.attacks.multi_pass import Shots
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.update import ObserverChoice
from ltmia.evaluation.results import Results
from ltmia.models.batching import BatchSize
from ltmia.report.notebook import results_html, roc_axes


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
class Question:
    """Two sets of texts and what is asked about them."""

    kind: Literal["audit", "score"]
    sets: TextSets
    config: JudgeConfig
    attacks: Sequence[str]
    """Attacks whose scores answer the question."""
    also_scored: Sequence[str] = ()
    """Attacks that the checks need besides."""
    shots: Shots | None = None
    """Texts of known membership for the attacks that take several passes; None: none of those takes part."""
    reveal: bool = False
    """Write texts and tokens into the files."""
