"""The question an audit or a score asks, its options, and its answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from matplotlib.axes import Axes

from ltmia.attacks.multi_pass import Shots
from ltmia.auditing.spans import WantedSpans
from ltmia.auditing.subject import PLAIN, Subject
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.update import MUST_READ, UNSEEN_WEIGHTS, ObserverChoice
from ltmia.errors import ConfigError
from ltmia.evaluation.results import Results
from ltmia.models.batching import BatchSize
from ltmia.report.notebook import results_html, roc_axes

OF_SPANS = ("spans", "alternatives", "most_values")
"""Options without effect if no spans are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Options that `audit` and `score` share."""

    classifier: str | None = None
    """"full" or "lite" (part of this package), a folder, or a hub id; "full" when None."""
    fdr: float = 0.05
    """False discovery rate to flag records at."""
    max_length: int | None = None
    """Tokens read of each text. None: see `ltmia.scoring.audited_pair.length_to_read`."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass."""
    observer: ObserverChoice = "auto"
    """What an attacker sees. "logprobs": an endpoint; "weights": both models; "training_run": checkpoints too; "auto":
    weights and checkpoints if they can be read, else the results say why not."""
    thorough: bool = False
    """Read more of the weights, which takes longer; see `WeightsConfig.of`."""
    seed: int = 0
    """Seed of resampling, folds, permutations and calibration split."""
    chat_day: str | None = None
    """Date that the chat template wrote into the conversations, if it wrote one; see `ChatTemplate.day_told`."""
    spans: str | None = None
    """File of secrets in the texts, see `ltmia.data.spans.read_spans`; `presidio` or `presidio:TYPE,TYPE`: what
    Presidio recognises; None: no secrets are looked at."""
    alternatives: int = 2000
    """Largest number of other values that each secret is compared with."""
    most_values: int = 50
    """Largest number of secrets ranked in the members, and as many in the non-members; they are drawn at random."""
    continuations: int = 0
    """Number of texts to judge, those with the highest scores, whose beginnings both models continue, and of as many
    non-members; see docs/extraction.md."""
    overwrite: bool = False
    """Replace files of a run with other settings or texts; changes no number."""

    def __post_init__(self) -> None:
        """Refuse to read more of the weights for an attacker who does not see them.

        Raises:
            ConfigError: If that is asked for.
        """
        if self.thorough and self.observer == "logprobs":
            raise ConfigError(UNSEEN_WEIGHTS)

    @property
    def must_read(self) -> bool:
        """Whether the weights must be read: else they are read if they can be."""
        return self.thorough or self.observer in MUST_READ

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the numbers."""
        without = {"overwrite", *(OF_SPANS if self.spans is None else ())}
        # Off, they are left out, so that older folders are resumed.
        without |= {name for name in ("continuations", "thorough") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in without}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """Results of an audit, and the folder that holds them."""

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
    max_length: int
    """Tokens read of each text."""
    attacks: Sequence[str]
    """Attacks whose scores answer the question."""
    shots: Shots | None = None
    """Texts of known membership for attacks that take several passes; None leaves these attacks out."""
    spans: WantedSpans | None = None
    """Secrets in the texts."""
    reveal: bool = False
    """Write texts and tokens into the files."""
    subject: Subject = PLAIN
    """What the audit is of, which adds figures of its own."""
