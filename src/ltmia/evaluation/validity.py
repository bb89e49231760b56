"""May the scores be trusted? Each check is a light, a plain sentence and its figures; and the verdict from them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ltmia.evaluation.controls import ControlScores, length_bucket_rows
from ltmia.evaluation.intervals import FEWEST_FALSE_POSITIVES, measure_attack
from ltmia.evaluation.results import AttackResult, Check, Decisions, Measure, SetTest
from ltmia.evaluation.roc import Scores, auc

OVERLAP_SHARE = 0.3
"""A text counts as overlapping when this share of its word 8-grams occurs on the other side."""


def control_check(control: ControlScores, measure: Measure, what: str) -> Check:
    """Judge a control that never saw the model: its AUC should not differ from one half.

    Args:
        control: Its scores.
        measure: Its AUC.
        what: "words" or "length", for the sentence.
    """
    if measure.value is None or measure.low is None or measure.high is None:
        reason = control.reason or measure.reason or "too few texts"
        return Check(status="not_measured", sentence=f"The {what} control could not be run: {reason}.")
    interval = f"AUC {measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
    if measure.low <= 0.5 <= measure.high:
        sentence = f"Members and non-members cannot be told apart by their {what} alone ({interval})."
        return Check(status="ok", sentence=sentence, measure=measure)
    sentence = (
        f"Members and non-members differ in their {what} without any model ({interval}): part of "
        "what the attacks find may be this difference and not membership."
    )
    return Check(status="warning", sentence=sentence, measure=measure)


def length_check(
    n_tokens: Int64[np.ndarray, " texts"],
    labels: Int64[np.ndarray, " texts"],
    scores: Scores,
    seed: int,
) -> Check:
    """Judge length as a control, and give the attack's AUC by length."""
    lengths = n_tokens.astype(np.float64)
    measure = measure_attack(lengths[labels == 1], lengths[labels == 0], seed=seed).auc
    check = control_check(ControlScores(scores=lengths), measure, "length")
    details: dict[str, float | int | str | None] = {}
    for rows in length_bucket_rows(n_tokens):
        value = auc(scores[rows][labels[rows] == 1], scores[rows][labels[rows] == 0])
        span = f"auc_{n_tokens[rows].min()}_to_{n_tokens[rows].max()}_tokens"
        details[span] = None if np.isnan(value) else value
    return check.model_copy(update={"details": details})


def duplicates_check(*, n_within: int, n_across: int, overlaps: Sequence[float], left_out: bool) -> Check:
    """Judge repeated texts and shared n-grams between members and non-members.

    Args:
        n_within: Texts that repeat another of their own set.
        n_across: Texts that repeat one of the other set.
        overlaps: Per member, the share of its word 8-grams that occur among the non-members.
        left_out: Whether repeats were left out of the audit.
    """
    n_overlapping = sum(share >= OVERLAP_SHARE for share in overlaps)
    details: dict[str, float | int | str | None] = {
        "repeats_within_a_set": n_within,
        "repeats_across_sets": n_across,
        "members_overlapping": n_overlapping,
        "left_out": int(left_out),
    }
    if not n_across and not n_overlapping:
        sentence = "No member repeats a non-member, nearly or in long passages."
        return Check(status="ok", sentence=sentence, details=details)
    sentence = (
        f"{n_across} text(s) repeat one of the other set and {n_overlapping} member(s) share "
        f"{OVERLAP_SHARE:.0%} or more of their 8-grams with it: such texts are members and non-members at once"
        + (", and were left out." if left_out else "; leave them out with --deduplicate.")
    )
    return Check(status="ok" if left_out else "warning", sentence=sentence, details=details)


def distribution_check(distance: float | None, limit: float) -> Check:
    """Judge how far this target's features lie from those the classifier was trained on."""
    if distance is None:
        return Check(status="not_measured", sentence="No learned classifier took part.")
    measure = Measure(value=distance)
    if distance <= limit:
        sentence = f"The features lie within what the classifier was trained on (distance {distance:.2f})."
        return Check(status="ok", sentence=sentence, measure=measure)
    sentence = (
        f"The features lie outside the classifier's training data (distance {distance:.2f}, limit {limit:.2f}): it is "
        "extrapolating, so trust the best baseline first."
    )
    return Check(status="warning", sentence=sentence, measure=measure)


def backend_check(*, noise: float, gap: float, dtype: str) -> Check:
    """Judge the numeric noise of the models against the signal.

    Args:
        noise: Largest difference of a text's mean log-ratio between the audit and a second scoring, alone.
        gap: Standard deviation of the mean log-ratio over texts.
        dtype: What the audit computed in.
    """
    details: dict[str, float | int | str | None] = {"noise": noise, "spread": gap, "dtype": dtype}
    share = noise / gap if gap > 0 else float("inf")
    if share <= 0.05:
        sentence = f"Scored again one by one, texts move by {share:.1%} of their spread: noise is negligible."
        return Check(status="ok", sentence=sentence, details=details)
    sentence = (
        f"Scored again one by one, texts move by {noise:.2g} nats, against a spread of {gap:.2g}: "
        f"scores computed in {dtype} are noisy; audit again with --dtype float32."
    )
    return Check(status="warning", sentence=sentence, details=details)


def power_check(n_members: int, n_nonmembers: int, smallest_p: float) -> Check:
    """State what this many texts can show at all."""
    smallest_fpr = FEWEST_FALSE_POSITIVES / n_nonmembers if n_nonmembers else None
    details: dict[str, float | int | str | None] = {
        "smallest_fpr": smallest_fpr,
        "smallest_p": smallest_p,
        "members": n_members,
    }
    if smallest_fpr is None or smallest_fpr > 0.1:
        sentence = (
            f"{n_nonmembers} non-members are too few to measure a true-positive rate at 10 % FPR; "
            f"no p-value can be below {smallest_p:.3g}."
        )
        return Check(status="warning", sentence=sentence, details=details)
    sentence = (
        f"{n_nonmembers} non-members resolve false-positive rates down to {smallest_fpr:.2g}, and p-values down "
        f"to {smallest_p:.2g}."
    )
    return Check(status="ok", sentence=sentence, details=details)


def verdict(attack: str, result: AttackResult | None, decisions: Decisions, blind: Check) -> str:
    """Compose the paragraph that sums up an audit from measured figures only."""
    found = (
        f"{decisions.n_flagged} of {decisions.n_judged} records can be identified as training data at a false "
        f"discovery rate of {decisions.fdr:.0%}, judged by {attack} against {decisions.n_calibration} known "
        "non-members."
    )
    fdp = decisions.realized_fdp
    if fdp.value is not None:
        found += f" When non-members were judged the same way, {fdp.value:.1%} of all flags were false."
    strength = ""
    if result is not None and result.auc.value is not None:
        a = result.auc
        strength = f" Over all records its AUC is {a.value:.3f} [{a.low:.3f}, {a.high:.3f}]."
    shift = f" {blind.sentence}" if blind.status == "warning" else ""
    limits = (
        " A record that is not flagged may still have been used: the attack can miss it. A flag is evidence, not "
        "proof; the error rate holds on average over records like these non-members."
    )
    return found + strength + shift + limits


def set_sentence(test: SetTest) -> str:
    """Say what all candidates together show."""
    if test.p_value is None:
        return f" No statement about the candidates as a whole: {test.reason}."
    seen = f"p = {test.p_value:.2g}" if test.p_value >= 0.001 else "p < 0.001"
    return (
        f" Taken together, candidates outscore texts surely not used with {seen}; a candidate wins against such a "
        f"text with a probability of {test.effect.value:.3f} [{test.effect.low:.3f}, {test.effect.high:.3f}]."
    )
