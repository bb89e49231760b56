"""Checks of the texts: can the scores be trusted? Each check has a status, a plain sentence and its figures."""

import numpy as np
from jaxtyping import Int64
from scipy.stats import beta

from ltmia.data.duplicates import OVERLAP_SHARE
from ltmia.evaluation.controls import ControlScores, length_bucket_rows
from ltmia.evaluation.intervals import FEWEST_FALSE_POSITIVES, measure_attack
from ltmia.evaluation.results import Check, Decisions
from ltmia.evaluation.roc import Scores, auc
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure as written
from ltmia.evaluation.wording import percent, rate

FEWEST_GROUPS = 20
"""Fewest calibration groups; with fewer, p-values of single texts rest on too few independent texts."""
FEWEST_TO_LEARN_FROM = 40
"""Fewest texts, of both kinds together, with which the learned attack was measured to find more than any other."""

SMALLEST_EFFECT = 0.05
"""Difference of the control's AUC from one half below which it hardly changes other figures."""
MANY_REPEATS = 0.05
"""Share of repeated texts at which the check warns, because there are fewer different texts."""

Details = dict[str, float | int | str | None]


def control_check(control: ControlScores, measure: Measure, what: str, asked: str = "members") -> Check:
    """Judge a control that never saw the model: its AUC should not differ from one half by `SMALLEST_EFFECT` or more.

    Args:
        control: Scores of the control.
        measure: AUC of the control.
        what: "words" or "length", for the sentence.
        asked: Name of the texts compared with the non-members.
    """
    if measure.value is None or measure.low is None or measure.high is None:
        reason = control.reason or measure.reason or "too few texts"
        return Check(status="not_measured", sentence=f"The {what} control could not be run: {reason}.")
    interval = f"AUC {written(measure)}"
    if measure.low <= 0.5 <= measure.high:
        sentence = f"{asked.capitalize()} and non-members cannot be told apart by their {what} alone ({interval})."
        return Check(status="ok", sentence=sentence, measure=measure)
    if abs(measure.value - 0.5) < SMALLEST_EFFECT:
        sentence = f"{asked.capitalize()} and non-members hardly differ in their {what} alone ({interval})."
        return Check(status="ok", sentence=sentence, measure=measure)
    sentence = (
        f"{asked.capitalize()} and non-members differ in their {what} alone ({interval}): part of "
        "what the attacks find may be this difference and not membership."
    )
    return Check(status="warning", sentence=sentence, measure=measure)


def length_check(
    n_tokens: Int64[np.ndarray, " texts"],
    labels: Int64[np.ndarray, " texts"],
    scores: Scores,
    seed: int,
    asked: str = "members",
) -> Check:
    """Judge length as a control, and give the attack's AUC by length."""
    lengths = n_tokens.astype(np.float64)
    measure = measure_attack(lengths[labels == 1], lengths[labels == 0], seed=seed).auc
    check = control_check(ControlScores(scores=lengths), measure, "length", asked)
    details: Details = {}
    for rows in length_bucket_rows(n_tokens):
        value = auc(scores[rows][labels[rows] == 1], scores[rows][labels[rows] == 0])
        span = f"auc_{n_tokens[rows].min()}_to_{n_tokens[rows].max()}_tokens"
        details[span] = None if np.isnan(value) else value
    return check.model_copy(update={"details": details})


def duplicates_check(
    *,
    n_within: int,
    n_across: int,
    n_overlapping: int,
    n_left_out: int | None,
    n_texts: int,
    candidates: str = "member",
) -> Check:
    """Judge repeated texts and shared n-grams between members and non-members.

    Args:
        n_within: Number of texts that repeat another of their own set.
        n_across: Non-members that repeat a member.
        n_overlapping: Non-members that share long passages with members.
        n_left_out: Texts left out for one of these reasons; None if the audit was not asked to leave out any.
        n_texts: Texts of both sets.
        candidates: Name of the texts compared with the non-members.
    """
    details: Details = {
        "repeats_within_a_set": n_within,
        "repeats_across_sets": n_across,
        "nonmembers_overlapping": n_overlapping,
        "left_out": n_left_out or 0,
    }
    left_out = "" if n_left_out is None else f" {n_left_out} text(s) were left out."
    if n_within:
        left_out = f" {n_within} text(s) repeat another of their own set; equal texts count once.{left_out}"
    if not n_across and not n_overlapping:
        sentence = f"No non-member repeats a {candidates}, as a whole or in long passages.{left_out}"
        many = n_within >= MANY_REPEATS * n_texts and n_within > 0
        return Check(status="warning" if many else "ok", sentence=sentence, details=details)
    sentence = (
        f"{n_across} non-member(s) repeat a {candidates} and {n_overlapping} share {percent(OVERLAP_SHARE)} or more of "
        f"their 8-grams with one: such texts are in both sets and make leakage look smaller.{left_out}"
    )
    cure = " Leave them out with the option `deduplicate`." if candidates == "member" and n_left_out is None else ""
    return Check(status="warning", sentence=sentence + cure, details=details)


def expectation_check(n_texts: int | None) -> Check:
    """Judge whether there are enough texts to learn how fine-tuning changed tokens in general.

    Args:
        n_texts: Scorable texts that the expectation was learned from; None if no attack needs it.
    """
    if n_texts is None:
        sentence = "None of the attacks learns from the texts themselves."
        return Check(status="not_measured", sentence=sentence)
    details: Details = {"texts": n_texts, "fewest": FEWEST_TO_LEARN_FROM}
    learned = "how fine-tuning changed tokens in general"
    if n_texts >= FEWEST_TO_LEARN_FROM:
        sentence = f"The attacks excess and ltmia learned from {n_texts} texts {learned}."
        return Check(status="ok", sentence=sentence, details=details)
    sentence = (
        f"The attacks excess and ltmia learned from only {n_texts} texts {learned}; with fewer than "
        f"{FEWEST_TO_LEARN_FROM} the best of the other attacks may find more."
    )
    return Check(status="warning", sentence=sentence, details=details)


def power_check(n_members: int, n_nonmembers: int, decisions: Decisions, asked: str = "members") -> Check:
    """State which rates can be measured with this many texts, and which cannot."""
    smallest_fpr = FEWEST_FALSE_POSITIVES / n_nonmembers if n_nonmembers else None
    smallest_tpr = None if smallest_fpr is None else _smallest_tpr(n_members, smallest_fpr)
    details: Details = {
        "smallest_fpr": smallest_fpr,
        "smallest_tpr": smallest_tpr,
        "smallest_p": decisions.smallest_p,
        "fewest_flags": decisions.fewest_flags,
        "members": n_members,
        "calibration_groups": decisions.n_calibration_groups,
    }
    found = _flagging_power(decisions)
    few_groups = decisions.n_calibration_groups is not None and decisions.n_calibration_groups < FEWEST_GROUPS
    if few_groups:
        found += (
            f" They come from {decisions.n_calibration_groups} groups only: if texts of a group are alike, more "
            "flags on single records may be false than the stated rate, so rely on the flags of whole groups."
        )
    no_group = bool(decisions.n_groups_judged) and decisions.fewest_group_flags is None
    if no_group:
        found += " There are too few groups of non-members to flag a group as a whole."
    if smallest_fpr is None or smallest_fpr > 0.1:
        sentence = f"{n_nonmembers} non-members are too few to measure a true-positive rate at 10 % FPR. {found}"
        return Check(status="warning", sentence=sentence, details=details)
    rates = f"{n_nonmembers} non-members are enough to measure false-positive rates down to {smallest_fpr:.2g}"
    if smallest_tpr is not None:
        rates += f", and {n_members} {asked} to show a true-positive rate of {smallest_tpr:.2g} or more there"
    status = "warning" if few_groups or no_group or not decisions.can_flag else "ok"
    return Check.model_validate({"status": status, "sentence": f"{rates}. {found}", "details": details})


def _smallest_tpr(n: int, fpr: float) -> float | None:
    """Return the smallest share of n whose exact 95 % interval is above the false-positive rate."""
    counts = np.arange(1, n + 1)
    above = counts[beta.ppf(0.025, counts, n - counts + 1) > fpr]
    return float(above[0] / n) if len(above) else None


def _flagging_power(decisions: Decisions) -> str:
    least = f"No p-value can be below {decisions.smallest_p:.2g}"
    if decisions.fewest_flags is None:
        return f"{least}, so nothing can be flagged at a false discovery rate of {rate(decisions.fdr)}."
    needed = f"at least {decisions.fewest_flags} score above nearly all non-members"
    if not decisions.can_flag:
        return f"{least}, so records are flagged only if {needed}; fewer were judged."
    return f"{least}, so records are flagged only if {needed}."
