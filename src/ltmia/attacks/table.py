"""The table of attacks: one row each, and everything that lists, selects or runs attacks reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltmia.attacks import likelihood, multi_pass, preference, reference
from ltmia.attacks.evidence import TextEvidence
from ltmia.attacks.multi_pass import Scores, Shots, TargetQueries
from ltmia.attacks.preference import LogRatios
from ltmia.records import SERVED

FastFunction = Callable[[TextEvidence], float]
PairFunction = Callable[[LogRatios, LogRatios], LogRatios]
SlowFunction = Callable[[TargetQueries, Sequence[str], Shots], Scores]
Observer = Literal["logprobs", "weights", "training_run"]
"""What an attacker sees: log-probabilities of both models, or also their weights, or also checkpoints of the training
run. From weakest to strongest."""
Group = Literal["fast", "slow", "pairs", "set", "learned", "weights", "control"]

LEARNED = "ltmia"
"""The learned classifier, computed by `ltmia.classifier`."""
EXCESS = "excess"
"""The mean excess of D_t over its expectation, computed by `ltmia.expectation.model` from all texts."""
UPDATE = "update"
"""Evidence for a text's gradient in the update of the weights, computed by `ltmia.weights`."""
WITH_WEIGHTS = "ltmia_weights"
"""The update's log-odds and the learned classifier together, computed by `ltmia.weights.combination`."""
CHECKPOINTS = "checkpoints"
"""Evidence for a text's gradient in the updates between checkpoints, computed by `ltmia.weights.checkpoints`."""
WEIGHTS = (CHECKPOINTS, WITH_WEIGHTS, UPDATE)
"""Attacks that read weights; of each observer, the one that decides comes first."""
PREFERENCE = "premia_pair"
"""The attack that decides about preference pairs, computed by `ltmia.attacks.preference`."""
CONTROL = "bag_of_words"
"""The control that never sees a model, computed by `ltmia.evaluation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to give a text a score; higher is more member-like."""

    name: str
    """Key in files and flags."""
    title: str
    """Name for readers."""
    needs: str
    passes: str
    """Passes per text over target / reference. All fast attacks share one pass."""
    source: str
    """Paper."""
    fast: FastFunction | None = None
    """Scores one text from the shared pass."""
    slow: SlowFunction | None = None
    """Scores texts with passes of its own."""
    pairs: PairFunction | None = None
    """Scores preference pairs from the log-ratios of both completions."""
    reads: frozenset[str] | None = None
    """Fields of `TokenStatistics` that it reads, for an attack without a function."""
    observer: Observer = "logprobs"
    """What an attacker must see to run it."""

    @property
    def group(self) -> Group:
        """Group of the attack, by cost and by the module that computes it."""
        if self.fast:
            return "fast"
        if self.slow:
            return "slow"
        if self.pairs:
            return "pairs"
        return _GROUP_OF[self.name]

    @property
    def recorded(self) -> bool:
        """Whether recorded log-probabilities are enough to compute it."""
        reads: frozenset[str] | None = getattr(self.fast, "reads", self.reads)
        return reads is not None and reads <= SERVED

    @property
    def function(self) -> Callable[..., Any] | None:
        """Function that scores texts or pairs; None if the attack needs more than one module."""
        return self.fast or self.slow or self.pairs

    @property
    def summary(self) -> str:
        """First line of the function's documentation."""
        function = self.function
        if function is None:
            return _SUMMARIES[self.name]
        return (function.__doc__ or "").strip().splitlines()[0]


_GROUP_OF: dict[str, Group] = {
    LEARNED: "learned",
    EXCESS: "set",
    UPDATE: "weights",
    WITH_WEIGHTS: "weights",
    CHECKPOINTS: "weights",
    CONTROL: "control",
}

_SUMMARIES = {
    EXCESS: "Return the weighted mean of D_t minus its expectation, which is learned from other texts.",
    LEARNED: "Return the logit of the learned classifier over per-token features of both models.",
    UPDATE: "Return the log-odds that the text's gradient is part of the update, target minus base.",
    WITH_WEIGHTS: "Return the log-odds that the text was used, from its share of the update and the score of `ltmia`.",
    CHECKPOINTS: "Return the log-odds that the text's gradient is part of an update between two checkpoints.",
    CONTROL: "Control: separate members from non-members by their words alone, without any model.",
}

_TARGET, _PAIR = "target", "target + reference"
_PREFERENCE_PAIRS, _PREMIA = "target + reference, pairs", "Feng et al. 2024, arXiv 2407.06443"

_ROWS = (
    Attack(
        name=LEARNED,
        title="LT-MIA",
        needs=_PAIR,
        passes="1/1",
        source="arXiv 2604.03199",
        reads=SERVED,  # as long as these suffice for the classifier
    ),
    Attack(
        name="loss",
        title="Loss",
        needs=_TARGET,
        passes="1/0",
        source="Yeom et al. 2018, arXiv 1709.01604",
        fast=likelihood.loss,
    ),
    Attack(
        name="zlib",
        title="Loss / zlib size",
        needs=_TARGET,
        passes="1/0",
        source="Carlini et al. 2021, arXiv 2012.07805",
        fast=likelihood.zlib,
    ),
    Attack(
        name="difference",
        title="Reference difference",
        needs=_PAIR,
        passes="1/1",
        source="Carlini et al. 2021, arXiv 2012.07805; arXiv 2203.03929",
        fast=likelihood.difference,
    ),
    Attack(
        name="ratio",
        title="Reference ratio",
        needs=_PAIR,
        passes="1/1",
        source="Carlini et al. 2021, arXiv 2012.07805",
        fast=likelihood.ratio,
    ),
    Attack(
        name="min_k",
        title="Min-K%",
        needs=_TARGET,
        passes="1/0",
        source="Shi et al. 2023, arXiv 2310.16789",
        fast=likelihood.min_k,
    ),
    Attack(
        name="min_k_plus_plus",
        title="Min-K%++",
        needs="target, whole vocabulary",
        passes="1/0",
        source="Zhang et al. 2024, arXiv 2404.02936",
        fast=likelihood.min_k_plus_plus,
    ),
    Attack(
        name="dc_pdd",
        title="DC-PDD",
        needs="target, token counts",
        passes="1/0",
        source="Zhang et al., EMNLP 2024, main 300",
        fast=likelihood.dc_pdd,
    ),
    Attack(
        name="surp",
        title="SURP",
        needs="target, whole vocabulary",
        passes="1/0",
        source="Zhang and Wu 2024, arXiv 2407.21248",
        fast=likelihood.surp,
    ),
    Attack(
        name="gap_k",
        title="Gap-K%",
        needs="target, whole vocabulary",
        passes="1/0",
        source="Kwak and Kim 2026, arXiv 2601.19936",
        fast=likelihood.gap_k,
    ),
    Attack(
        name="ez_mia",
        title="EZ-MIA",
        needs=_PAIR,
        passes="1/1",
        source="Ilić et al. 2026, arXiv 2601.12104",
        fast=reference.ez_mia,
    ),
    Attack(
        name="wbc",
        title="WBC",
        needs=_PAIR,
        passes="1/1",
        source="Chen et al. 2026, arXiv 2601.02751",
        fast=reference.wbc,
    ),
    Attack(
        name=EXCESS,
        title="Log-ratio excess",
        needs="target + reference, all texts",
        passes="1/1",
        source="this project",
    ),
    Attack(
        name="lowercase",
        title="Lower case",
        needs=_TARGET,
        passes="2/0",
        source="Carlini et al. 2021, arXiv 2012.07805",
        slow=multi_pass.lowercase,
    ),
    Attack(
        name="recall",
        title="ReCaLL",
        needs="target, known non-members",
        passes="2/0",
        source="Xie et al. 2024, arXiv 2406.15968",
        slow=multi_pass.recall,
    ),
    Attack(
        name="con_recall",
        title="CON-ReCaLL",
        needs="target, labelled texts",
        passes="3/0",
        source="Wang et al. 2024, arXiv 2409.03363",
        slow=multi_pass.con_recall,
    ),
    Attack(
        name="neighbourhood",
        title="Neighbourhood",
        needs=_PAIR,
        passes=f"{1 + multi_pass.NEIGHBOURS}/1",
        source="Mattern et al. 2023, arXiv 2305.18462",
        slow=multi_pass.neighbourhood,
    ),
    Attack(
        name="gradient_norm",
        title="Gradient norm",
        needs="target, gradients",
        passes="1/0 + backward",
        source="Wang et al. 2024, arXiv 2402.17012",
        slow=multi_pass.gradient_norm,
    ),
    Attack(
        name=PREFERENCE,
        title="PREMIA, pair",
        needs=_PREFERENCE_PAIRS,
        passes="2/2",
        source=_PREMIA,
        pairs=preference.pair,
    ),
    Attack(
        name="premia_chosen",
        title="PREMIA, chosen",
        needs=_PREFERENCE_PAIRS,
        passes="1/1",
        source=_PREMIA,
        pairs=preference.chosen_alone,
    ),
    Attack(
        name="premia_rejected",
        title="PREMIA, rejected",
        needs=_PREFERENCE_PAIRS,
        passes="1/1",
        source=_PREMIA,
        pairs=preference.rejected_alone,
    ),
    Attack(
        name=CHECKPOINTS,
        title="Updates by interval",
        needs="checkpoints, all texts",
        passes="1/1 + backward",
        source="this project",
        observer="training_run",
    ),
    Attack(
        name=WITH_WEIGHTS,
        title="LT-MIA + update",
        needs="weights, all texts",
        passes="1/1 + backward",
        source="this project",
        observer="weights",
    ),
    Attack(
        name=UPDATE,
        title="Weight update",
        needs="weights, all texts",
        passes="1/1 + backward",
        source="this project",
        observer="weights",
    ),
    Attack(
        name=CONTROL,
        title="Bag of words (control)",
        needs="labelled texts",
        passes="0/0",
        source="Meeus et al. 2024, arXiv 2406.17975; arXiv 2406.16201",
        reads=frozenset(),
    ),
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ROWS}
