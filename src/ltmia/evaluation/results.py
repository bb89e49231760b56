"""The schema of `results.json`, published as docs/results.schema.json.

A figure that could not be measured is null with a reason, never 0. This module imports no torch and sees no texts.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ltmia.evaluation.drawn_out import Extraction, NearVerbatim, Secrets
from ltmia.evaluation.pair_info import ModelInfo, TokenizerInfo
from ltmia.evaluation.section import Amount, Count, Measure, Rate, Section, Share, ShareMeasure
from ltmia.evaluation.subjects import Canaries, Synthetic


class DataInfo(Section):
    """Number of texts of each kind."""

    n_members: Count
    n_nonmembers: Count
    n_candidates: Count = 0
    n_unscorable: Count = 0
    n_repeats: Count = 0
    """Texts that differ from an earlier text of their set only in case and white space; decisions count them once."""
    n_nonmember_repeats: Count = 0
    """Number of these repeats among the non-members."""
    n_usable_nonmembers: Count | None = None
    """Non-members that could be scored, each text counted once; null in older files."""
    n_cut: Count | None = None
    """Texts longer than the part that is read. Null where recordings do not say, and in older files."""
    n_groups: Count | None = None
    """Distinct groups over all texts; null when the data have none."""
    preference_pairs: bool = False
    """Whether each text is a preference pair: a prompt, a chosen and a rejected completion."""


class AttackResult(Section):
    """How well one attack separates members from non-members."""

    auc: ShareMeasure
    tpr_at_fpr: dict[Rate, ShareMeasure]
    """Largest true-positive rate whose false-positive rate is at most the key: "0.1", "0.01", "0.001"."""
    realized_fpr: dict[Rate, ShareMeasure] = Field(default_factory=dict)
    """Actual false-positive rate at each of those thresholds, with its Clopper-Pearson interval."""
    n_members: Count | None = None
    """Members that the attack scored; null in older files."""
    n_nonmembers: Count | None = None

    def tpr(self, fpr: Rate) -> Measure:
        """Return the true-positive rate at a false-positive rate; null with the reason if the file lacks it."""
        return self.tpr_at_fpr.get(fpr, Measure(reason="not in the results file"))


class Decisions(Section):
    """Which records are flagged, and the share of false flags that was observed."""

    attack: str
    """The attack whose scores the p-values rank."""
    fdr: Share
    n_flagged: Count
    """Equal texts count once here and in `n_judged`."""
    n_judged: Count
    n_calibration: Count
    """Non-members the p-values were computed against."""
    smallest_p: Share
    """1 / (n_calibration + 1): no p-value can be smaller."""
    fewest_flags: Annotated[int, Field(ge=1)] | None = None
    """Records that must score above nearly all calibration texts before any is flagged; null if no number is enough."""
    n_calibration_groups: Count | None = None
    """Groups that the calibration non-members come from; null without groups."""
    realized_fdp: ShareMeasure = Field(default_factory=Measure)
    """Share of false flags when the non-members left out of calibration are judged as well (audit only)."""
    flagged_groups: list[str] | None = None
    """Groups flagged as a whole (salted hashes); null without groups. `groups.parquet` has p and q of each."""
    n_groups_judged: Count | None = None
    """Groups judged as a whole; null without groups."""
    fewest_group_flags: Annotated[int, Field(ge=1)] | None = None
    """Groups that must stand out before any group is flagged; null if no number is enough, and without groups."""

    @model_validator(mode="after")
    def _no_more_than_judged(self) -> "Decisions":
        if self.n_flagged > self.n_judged:
            raise ValueError(f"{self.n_flagged} of {self.n_judged} records judged are flagged")
        return self

    @property
    def can_flag(self) -> bool:
        """Whether any record could have been flagged."""
        return self.fewest_flags is not None and self.fewest_flags <= self.n_judged


class ObserverResult(Section):
    """Decisions of one observer, who sees log-probabilities or holds the weights of both models."""

    attack: str | None = None
    """The attack that decides for this observer; null if the observer was not tried."""
    decisions: Decisions | None = None
    reason: str | None = None
    """Why this observer was not tried."""


class UpdateInfo(Section):
    """Figures of the attack on the update of the weights, target minus base."""

    explained: float
    """Share of the update that the texts explain."""
    n_coordinates: Count
    """Coordinates of the update that were read."""
    layers: list[int]
    """Layers of these coordinates."""
    points: list[float]
    """Points between base (0) and target (1) at which gradients were computed."""
    unread: Share | None = None
    """Share of the weights in these layers' changed matrices that lie in matrices that cannot be read; older files lack
    it."""
    rounded: Share | None = None
    """Share of the coordinates whose stored weights look rounded; the others are taken as exact."""
    seconds: Amount


class TrainingRunInfo(Section):
    """Figures of the attack on the updates between checkpoints of the training run."""

    checkpoints: list[ModelInfo]
    """Checkpoints that were read, in the order of training."""
    n_left_out: Count
    """Those that end no interval: with the weights of another one, of base or target, or later than the target."""
    explained: list[float]
    """Share of the update of each interval that the texts explain; the first begins at the base, the last ends at the
    target."""
    seconds: Amount


class SetTest(Section):
    """Was this collection used? One p-value for all candidates together."""

    p_value: Share | None
    effect: ShareMeasure
    """Probability that a random candidate scores above a random non-member."""
    n_for_power: Count | None = None
    """Candidates needed for a power of 80 % at this effect."""
    reason: str | None = None


class Check(Section):
    """One validity check: a status, a sentence that explains it, and its figures."""

    status: Literal["ok", "warning", "failed", "not_measured"]
    sentence: str
    measure: Measure = Field(default_factory=Measure)
    details: dict[str, float | int | str | None] = Field(default_factory=dict)


class Validity(Section):
    """Checks whether the scores can be trusted; every check runs in every audit."""

    blind: Check
    """Bag-of-words without any model: do members and non-members differ in their words alone?"""
    near_duplicates: Check
    length_only: Check
    out_of_distribution: Check
    expectation: Check = Check(status="not_measured", sentence="Written before this check existed.")
    """Were there enough texts to learn how fine-tuning changed tokens in general?"""
    base: Check = Check(status="not_measured", sentence="Written before this check existed.")
    """Is the reference the base that the target was fine-tuned from?"""
    length_read: Check = Check(status="not_measured", sentence="Written before this check existed.")
    """Was the target trained on as much of each text as was read?"""
    backend: Check
    power: Check


class Reused(Section):
    """Work of an earlier run in the same folder that this run reused."""

    what: str
    """`store`, `scores` of a cluster, `secrets`, `continuations`, or an attack that takes several passes."""
    n_texts: Count
    """Texts whose scores were there already, or secrets or continuations that at least one model had done."""
    since: datetime
    """When the earlier run began that work."""


class Timing(Section):
    """Times of the run; reused work of an earlier run counts with the time it took then."""

    seconds: Amount
    texts_per_second: Amount
    forward_seconds: Amount
    feature_seconds: Amount


class Results(Section):
    """Everything `results.json` holds."""

    schema_version: Literal[2] = 2
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Random id of the run that wrote this file; the records and the report of the run have the same id."""
    content_sha256: str | None = None
    """Hash of the rest of the file, so that an edited file is refused; null in older files."""
    ltmia_version: str
    kind: Literal["audit", "score"]
    created: datetime
    command: str
    settings: dict[str, str | int | float | bool | None]
    """Options that determine the numbers: seed, max_length, dtype, classifier, feature version, ..."""
    environment: dict[str, str]
    """Versions of python and the libraries, hardware, threads."""
    target: ModelInfo
    reference: ModelInfo
    tokenizer: TokenizerInfo
    data: DataInfo
    attacks: dict[str, AttackResult]
    """Results by attack; empty without labels (score)."""
    decisions: Decisions
    observers: dict[Literal["logprobs", "weights", "training_run"], ObserverResult] = Field(default_factory=dict)
    """Decisions of each observer; `decisions` are those of the strongest one that was tried."""
    update: UpdateInfo | None = None
    """Figures of the attack on the weights; null if it did not run."""
    training_run: TrainingRunInfo | None = None
    """Figures of the attack on checkpoints; null if it did not run."""
    extraction: Extraction | None = None
    """How many texts can be drawn out; null in older files."""
    near_verbatim: NearVerbatim | None = None
    """How near continuations come to the texts; null if none were asked for."""
    secrets: Secrets | None = None
    """Exposure of secrets; null if no spans were given."""
    canaries: Canaries | None = None
    """What was measured with canaries; null if the texts are none."""
    synthetic: Synthetic | None = None
    """Which synthetic texts the figures are of; null if they are of a model."""
    set_test: SetTest
    epsilon: Measure | None = None
    """Lower bound on the privacy loss epsilon of a text (one-run audit), in nats; null without labels."""
    validity: Validity
    verdict: str
    """One paragraph composed from the figures above and nothing else."""
    timing: Timing
    reused: list[Reused] = Field(default_factory=list)
    """Work that was reused; empty if there was none."""

    @property
    def subject(self) -> str | None:
        """What the audit is of, in a sentence; None if it is of a model and texts alone."""
        found = self.canaries or self.synthetic
        return None if found is None else found.sentence

    @model_validator(mode="after")
    def _no_part_above_its_whole(self) -> "Results":
        data, drawn, near = self.data, self.extraction or Extraction(), self.near_verbatim or NearVerbatim()
        secrets = () if self.secrets is None else (self.secrets.judged, self.secrets.nonmembers)
        asked = data.n_members + data.n_candidates
        n_texts = asked + data.n_nonmembers
        for what, part, whole in (
            ("records judged", self.decisions.n_judged, asked),
            ("texts that could not be scored", data.n_unscorable, n_texts),
            ("texts that were cut", data.n_cut or 0, n_texts),
            ("repeats", data.n_repeats, n_texts),
            ("repeats among non-members", data.n_nonmember_repeats, min(data.n_repeats, data.n_nonmembers)),
            ("usable non-members", data.n_usable_nonmembers or 0, data.n_nonmembers),
            *(("secrets ranked", part.n_ranked, part.n_values) for part in secrets),
            ("tokens in a row", near.longest_new_run, near.longest_suffix),
            ("records drawn out", max((found.n_new for found in drawn.within.values()), default=0), drawn.n_judged),
        ):
            if part > whole:
                raise ValueError(f"{part} {what}, where there are {whole} at most")
        return self
