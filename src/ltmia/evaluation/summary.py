"""The verdict that a reader sees first: one word, three sentences, the limits and the observer.

The terminal, the report and the notebook show this. The word agrees with the gate: an audit that fails the gate is
never called harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ltmia.evaluation.blind_spots import CONTROL, few_texts, of_an_audit
from ltmia.evaluation.gate import GateVerdict, hold_against
from ltmia.evaluation.limits import DEFAULT_LIMITS, Limit
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.verdict import headline
from ltmia.evaluation.wording import figure, p_value

Status = Literal["passed", "failed", "inconclusive"]
SIGNIFICANT = 0.05
"""Largest p-value of all candidates together that is a sign of use."""
CLEARLY = 0.8
"""Smallest AUC of clearly recognisable members: four times in five a member outscores a non-member."""
WORDS: dict[str, dict[Status, str]] = {
    "audit": {
        "failed": "Do not release: limit exceeded",
        "passed": "Within the limits",
        "inconclusive": "Cannot tell",
    },
    "score": {"failed": "Signs of use", "passed": "No sign of use", "inconclusive": "Cannot tell"},
}
SEEN: dict[str, str] = {
    "logprobs": "an attacker who sees log-probabilities only",
    "weights": "an attacker who holds the weights of both models",
    "training_run": "an attacker who also holds checkpoints of the training run",
}
"""Description of each observer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The verdict of an audit in a few words."""

    status: Status
    word: str
    points: tuple[str, ...]
    """Three sentences: on single records, on the texts as a whole, and on the limits."""
    limits: str
    """Limits that the verdict rests on, and their source."""
    observer: str
    """Observer that the figures assume."""


def summarise(results: Results, limits: Sequence[Limit] | None = None) -> Summary:
    """Summarise an audit or a score.

    Args:
        results: Results of the audit.
        limits: Limits of a policy; the default ones when None. A score has none: it asks whether candidates were used.
    """
    if results.kind == "score":
        status, reason = _status_of_score(results)
        said = "" if status == "failed" else "A text that is not flagged may still have been used."
        limits_said = f"Signs: a flagged candidate, or a p-value of {SIGNIFICANT:g} or less for all together."
        third = reason or said
    else:
        gate = hold_against(results, limits or DEFAULT_LIMITS)
        status, third, limits_said = gate.outcome, _of_limits(gate, results), _named(limits)
    points = (_single(results), _as_a_whole(results), third)
    if status == "inconclusive":
        points = (third, *_despite(results))
    return Summary(
        status=status,
        word=WORDS[results.kind][status],
        points=tuple(point for point in points if point),
        limits=limits_said,
        observer=_observer(results),
    )


def _asked(results: Results) -> str:
    return "training records" if results.kind == "audit" else "candidates"


def _status_of_score(results: Results) -> tuple[Status, str]:
    """Say whether candidates show signs of use, or why that is unknown."""
    p, flagged = results.set_test.p_value, results.decisions.n_flagged
    if flagged or (p is not None and p <= SIGNIFICANT and few_texts(results) is None):
        return "failed", ""
    if reasons := of_an_audit(results):
        return "inconclusive", reasons[0]
    if p is None:
        return "inconclusive", f"Nothing can be said of the candidates as a whole: {results.set_test.reason}."
    return "passed", ""


def _single(results: Results) -> str:
    decisions = results.decisions
    said = headline(decisions, _asked(results), [])
    fewest = decisions.fewest_flags or 0
    if decisions.can_flag and not decisions.n_flagged and fewest > 1:
        said += f"; this audit is too small to flag fewer than {fewest}"
    return f"{said}."


def _despite(results: Results) -> tuple[str, str]:
    """Say what is known despite an inconclusive verdict; finding nothing means nothing if the audit saw too little."""
    found = results.decisions.n_flagged or _recognisable(results)
    if of_an_audit(results) and not found:
        return "That nothing was found therefore says nothing about the model.", ""
    return _single(results), _as_a_whole(results)


def _recognisable(results: Results) -> bool:
    """Whether the texts as a whole stand out."""
    effect = results.set_test.effect
    auc = results.attacks[results.decisions.attack].auc if results.decisions.attack in results.attacks else effect
    return auc.low is not None and auc.low > 0.5


def _as_a_whole(results: Results) -> str:
    """Say whether the texts, taken together, can be recognised, by the attack that decides."""
    if results.kind == "score":
        return _candidates_as_a_whole(results)
    decisions = results.decisions
    auc = results.attacks[decisions.attack].auc if decisions.attack in results.attacks else Measure()
    if decisions.attack == CONTROL or auc.value is None or auc.low is None or auc.high is None:
        return "Nothing can be said of the training texts as a whole."
    found = f"AUC {figure(auc)} (0.5 is guessing)"
    if auc.high < 0.5:
        return f"As a whole the training texts score below the others: {found}. Were the two files swapped?"
    if auc.low <= 0.5:
        return f"As a whole the training texts cannot be told from others: {found}."
    how = "clearly" if auc.value >= CLEARLY else "to some degree"
    return f"As a whole the training texts are {how} recognisable: {found}."


def _candidates_as_a_whole(results: Results) -> str:
    test = results.set_test
    if test.p_value is None:
        return ""
    if test.p_value <= SIGNIFICANT:
        return f"As a whole the candidates score higher than texts surely not used ({p_value(test.p_value)})."
    return f"As a whole the candidates score no higher than texts surely not used ({p_value(test.p_value)})."


def _of_limits(gate: GateVerdict, results: Results) -> str:
    """Say which limits are exceeded or cannot be judged, why the audit is inconclusive, or that all limits are kept."""
    if gate.outcome == "failed":
        exceeded = [j for j in gate.judged if j.outcome == "failed"]
        named = "; ".join(f"{j.limit.title} {j.found}, at most {j.limit.most:g} is allowed" for j in exceeded)
        unsure = ", ".join(j.limit.title for j in gate.judged if j.outcome == "inconclusive")
        rest = f" Cannot tell: {unsure}." if unsure else ""
        return f"{len(exceeded)} of {len(gate.judged)} limits exceeded: {named}.{rest}"
    if gate.outcome == "inconclusive":
        open_limits = [judged.sentence for judged in gate.judged if judged.outcome == "inconclusive"]
        return (of_an_audit(results) or [f"{open_limits[0].rstrip('.')}."])[0]
    return "Every limit is kept, even at the upper end of the 95 % intervals."


def _named(limits: Sequence[Limit] | None) -> str:
    usual = {limit.figure: limit.most for limit in DEFAULT_LIMITS}
    named = []
    for limit in limits or DEFAULT_LIMITS:
        looser = limit.most > usual.get(limit.figure, limit.most)
        default = f" (default: {usual[limit.figure]:g})" if looser else ""
        named.append(f"{limit.title} {limit.most:g}{default}")
    said = ", ".join(named)
    return f"Limits of the policy: {said}." if limits else f"Default limits, since no policy was given: {said}."


def _observer(results: Results) -> str:
    attack = results.decisions.attack
    observer = next((name for name, found in results.observers.items() if found.attack == attack), "logprobs")
    return f"Judged by {attack}, as {SEEN[observer]}."
