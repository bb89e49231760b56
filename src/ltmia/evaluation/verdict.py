"""The headline and the paragraph that summarise an audit, composed from measured figures only."""

from collections.abc import Mapping, Sequence

from ltmia.evaluation.blind_spots import CONTROL
from ltmia.evaluation.results import AttackResult, Decisions, SetTest, Validity
from ltmia.evaluation.wording import figure as written
from ltmia.evaluation.wording import p_value, percents, rate

SPOILERS = ("blind", "near_duplicates", "base", "backend")
"""Checks whose warnings belong in the verdict: they change what the figures mean."""
LEARNING = ("ltmia", "excess", "ltmia_weights")
"""Attacks that learn: from other models, or from the texts of the audit."""
NEED_MANY_TEXTS = (*LEARNING, "update", "checkpoints")
"""Attacks that take out what all texts of the audit have in common."""


def headline(decisions: Decisions, judged: str, reasons: Sequence[str]) -> str:
    """Say in one line how many records can be identified. If the audit may see too little, the line says so.

    Args:
        decisions: Decisions on the records.
        judged: Name of the records, such as "training records".
        reasons: Why the audit may see too little (`blind_spots.of_an_audit`).
    """
    at = f"at a false discovery rate of {rate(decisions.fdr)}"
    if not decisions.n_judged:
        return f"No statement on {judged}: none could be scored"
    if not decisions.n_flagged and not decisions.can_flag:
        return f"No statement on single {judged}: with so few non-members none could be flagged {at}"
    found = f"{decisions.n_flagged} of {decisions.n_judged} {judged} can be identified {at}"
    if decisions.flagged_groups:
        found += f", and {len(decisions.flagged_groups)} of {decisions.n_groups_judged} groups as a whole"
    return f"{found}; but this audit may see too little" if reasons else found


def verdict(attacks: Mapping[str, AttackResult], decisions: Decisions, validity: Validity) -> str:
    """Compose the paragraph: findings, error rate, checks that warn, and what the audit does not show."""
    warnings = [getattr(validity, name) for name in SPOILERS]
    parts = [
        _found(decisions),
        _false_flags(decisions),
        _strength(attacks, decisions),
        _doubts(attacks, decisions.attack, validity),
        *(check.sentence for check in warnings if check.status in ("warning", "failed")),
        "A record that is not flagged may still have been used: the attack can miss it. A flag is evidence, not proof, "
        "in court or elsewhere: the error rate is an average, and correct only if unused records resemble these "
        "non-members.",
    ]
    return " ".join(part for part in parts if part)


def set_sentence(test: SetTest) -> str:
    """Return the sentence on all candidates together."""
    if test.p_value is None:
        return f" No statement about the candidates as a whole: {test.reason}."
    found = (
        f" All candidates together were compared with texts surely not used ({p_value(test.p_value)}): a candidate "
        f"scores above such a text with a probability of {written(test.effect)}."
    )
    if test.effect.high is not None and test.effect.high < 0.5:
        found += " So candidates score lower: the two files may have been swapped."
    if test.n_for_power is not None and test.p_value > 0.05:
        found += f" If that is the true effect, about {test.n_for_power:,} candidates would show it in 80 % of tests."
    return found + (f" ({test.reason}.)" if test.reason else "")


def _found(decisions: Decisions) -> str:
    d = decisions
    if d.attack == CONTROL:
        return "None of the attacks sees the model, so this audit says nothing about the model."
    if not d.n_judged:
        return "No record could be scored, so this audit says nothing about any record."
    if not d.n_flagged and not d.can_flag:
        why = f"{d.n_calibration} known non-members are too few to flag any"
        if d.fewest_flags is not None:
            why = (
                f"at least {d.fewest_flags} would have to score above nearly all of the {d.n_calibration} known "
                f"non-members, and only {d.n_judged} were judged, so none could be flagged"
            )
        return f"This audit says nothing about single records: {why} at a false discovery rate of {rate(d.fdr)}."
    found = (
        f"{d.n_flagged} of {d.n_judged} records can be identified as training data at a false discovery rate of "
        f"{rate(d.fdr)}, judged by {d.attack} against {d.n_calibration} known non-members."
    )
    if not d.n_flagged and d.fewest_flags is not None and d.fewest_flags > 1:
        found += f" If fewer than {d.fewest_flags} records can be identified, this audit is too small to flag them."
    return found


def _false_flags(decisions: Decisions) -> str:
    fdp = decisions.realized_fdp
    if fdp.value is None:
        return ""
    found = f"When non-members were judged the same way, {percents(fdp)} of all flags"
    kept = fdp.low is None or fdp.low <= decisions.fdr
    return f"{found} were wrong" + (
        "."
        if kept
        else f", more than the {rate(decisions.fdr)} asked for: the non-members are of several different kinds."
    )


def _strength(attacks: Mapping[str, AttackResult], decisions: Decisions) -> str:
    auc = attacks[decisions.attack].auc if decisions.attack in attacks else None
    if auc is None or auc.value is None or auc.low is None or auc.high is None:
        return ""
    figure = f"its AUC is {written(auc)}"
    if auc.high < 0.5:
        return (
            f"Non-members score higher than members ({figure}): the two files may have been swapped, and then all of "
            "this is invalid."
        )
    if not decisions.n_flagged and auc.low > 0.5:
        return f"Still, members as a whole can be told from non-members: over all records {figure}."
    return f"Over all records {figure}."


def _doubts(attacks: Mapping[str, AttackResult], attack: str, validity: Validity) -> str:
    """If learned scores are uncertain, say so and name the best other attack."""
    if attack not in LEARNING:
        return ""
    few = validity.expectation.status == "warning"
    said = [c.sentence for c in (validity.out_of_distribution, validity.expectation) if c.status == "warning"]
    passed_over = {attack, CONTROL, *(NEED_MANY_TEXTS if few else ())}
    others = {name: a.auc for name, a in attacks.items() if name not in passed_over and a.auc.value}
    if said and others:
        best = max(others, key=lambda name: others[name].value or 0.0)
        auc = others[best]
        kind = "attack that learns nothing" if few else "of the other attacks"
        said.append(f"The best {kind}, {best}, has an AUC of {written(auc)}.")
    return " ".join(said)
