"""Advice that follows from the figures of an audit, each with its evidence."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ltmia.evaluation.blind_spots import CONTROL, of_an_audit
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import auc
from ltmia.evaluation.wording import number, percent
from ltmia.report.slices import Records

MANY = 0.5
"""If at least this share of members is flagged, the training leaks, not single texts."""
FEW = 0.2
"""If at most this share of members is flagged, single texts may be the cause."""
HALF = 0.5
"""A few groups must hold this share of the flags to be named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing to do."""

    title: str
    evidence: str
    """Figures of this audit that support the advice."""
    todo: str


def advise(results: Results, records: Records) -> list[Advice]:
    """Return the advice that the figures support, the most urgent first; empty if there is none."""
    looks = (
        _mend_the_audit,
        _fewer_epochs,
        _whole_training,
        _outliers,
        _groups,
        _repeats,
        _weights,
        _checkpoints,
        _more_texts,
    )
    return [found for look in looks if (found := look(results, records)) is not None]


def _mend_the_audit(results: Results, _records: Records) -> Advice | None:
    reasons = of_an_audit(results)
    return Advice(
        title="Fix the audit first",
        evidence=" ".join(reasons),
        todo="Until then the other figures say little.",
    ) if reasons else None  # fmt: skip


def _fewer_epochs(results: Results, _records: Records) -> Advice | None:
    """Advise fewer epochs if training made the model worse on texts it never saw."""
    details = results.validity.base.details
    target, base = details.get("target_loss"), details.get("reference_loss")
    if not (isinstance(target, float) and isinstance(base, float)) or target <= base or results.kind != "audit":
        return None
    return Advice(
        title="Fewer epochs, or a lower learning rate",
        evidence=f"On the non-members the fine-tuned model does worse than its base: loss {number(target)} against "
        f"{number(base)} nats a token. So the training fitted these texts at the cost of others.",
        todo="Stop at the epoch whose loss on held-out texts is lowest.",
    )


def _whole_training(results: Results, _records: Records) -> Advice | None:
    d = results.decisions
    if results.kind != "audit" or not d.n_judged or d.n_flagged < MANY * d.n_judged:
        return None
    return Advice(
        title="Change the training, not single texts",
        evidence=f"{d.n_flagged} of {d.n_judged} members are flagged ({percent(d.n_flagged / d.n_judged)}): too many "
        "to remove.",
        todo="An adapter (LoRA), fewer epochs or differential privacy make the model learn less of every text.",
    )


def _outliers(results: Results, records: Records) -> Advice | None:
    """Advise a look at single records if they stand out and the rest look like non-members."""
    d, member = results.decisions, records.labels == 1
    if results.kind != "audit" or d.attack == CONTROL or not 0 < d.n_flagged <= FEW * d.n_judged:
        return None
    nonmembers = records.scores[records.labels == 0]
    with_them = auc(records.scores[member], nonmembers)
    without = auc(records.scores[member & ~records.flagged], nonmembers)
    if np.isnan(with_them) or np.isnan(without):
        return None
    return Advice(
        title="Look at the few records that stand out",
        evidence=f"{d.n_flagged} of {d.n_judged} members are flagged. Without them the AUC is {number(without)}, "
        f"with them {number(with_them)}.",
        todo="Choose “flagged” in the table of records. Remove these texts, or find out why the model memorised "
        "them: repeats, boilerplate, names.",
    )


def _groups(results: Results, records: Records) -> Advice | None:
    """Advise a look at groups if a few of them hold half of the flags."""
    of_flagged = Counter(
        group for row, group in enumerate(records.groups)
        if group is not None and records.labels[row] == 1 and records.flagged[row]
    )  # fmt: skip
    n_groups, n_flags = len(set(records.asked_groups)), sum(of_flagged.values())
    largest = np.cumsum([count for _, count in of_flagged.most_common()])
    if results.kind != "audit" or n_flags < 2 or n_groups < 2:
        return None
    n_hold = int(np.argmax(largest >= HALF * n_flags)) + 1
    if n_hold > 0.1 * n_groups:
        return None
    return Advice(
        title="Look at a few groups",
        evidence=f"{n_hold} of {n_groups} groups hold {int(largest[n_hold - 1])} of the {n_flags} flagged members.",
        todo="“Parts of the data” lists them. Remove them, or use fewer texts of each.",
    )


def _repeats(results: Results, _records: Records) -> Advice | None:
    n = results.validity.near_duplicates.details.get("repeats_within_a_set")
    if results.kind != "audit" or not isinstance(n, int | float) or not n:
        return None
    return Advice(
        title="Remove repeats from the training file",
        evidence=f"{n:g} texts repeat another text of their set. The model learns a text better each time it reads it.",
        todo="Remove exact and near repeats, and fine-tune again.",
    )


def _weights(results: Results, _records: Records) -> Advice | None:
    """Advise to keep the weights private if they reveal more records than log-probabilities do."""
    weights, logprobs = _flagged(results, "weights"), _flagged(results, "logprobs")
    if weights is None or logprobs is None or weights <= logprobs:
        return None
    return Advice(
        title="Keep the weights private",
        evidence=f"An attacker with the weights of both models identifies {weights} records; one with "
        f"only log-probabilities identifies {logprobs}.",
        todo="Offer the model through an endpoint instead of publishing it, or publish the average of its weights and "
        "those of fine-tunes on other texts.",
    )


def _checkpoints(results: Results, _records: Records) -> Advice | None:
    """Advise to remove the checkpoints if they reveal more records than the weights do."""
    run, weights = _flagged(results, "training_run"), _flagged(results, "weights")
    if run is None or weights is None or run <= weights:
        return None
    return Advice(
        title="Delete the checkpoints",
        evidence=f"An attacker who also holds checkpoints of the training run identifies {run} records; one with the "
        f"weights of both models identifies {weights}.",
        todo="Delete them when training is done, or keep them where the texts are kept.",
    )


def _flagged(results: Results, observer: str) -> int | None:
    """Return how many records an observer identifies; None if it was not tried."""
    found = {str(name): result.decisions for name, result in results.observers.items()}.get(observer)
    return None if found is None else found.n_flagged


def _more_texts(results: Results, _records: Records) -> Advice | None:
    d = results.decisions
    if d.can_flag or not d.n_judged:
        return None
    return Advice(
        title="Add non-members",
        evidence=f"With {d.n_calibration} non-members for calibration, no p-value is below {d.smallest_p:.2g}. So none "
        f"of {d.n_judged} records could be flagged, even if the model leaks.",
        todo="Use a thousand non-members of the same kind, if you can.",
    )
