"""What the figures of an audit suggest to do, each with its evidence in that very audit."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ltmia.evaluation.blind_spots import CONTROL, of_an_audit
from ltmia.evaluation.results import Results
from ltmia.evaluation.roc import auc
from ltmia.evaluation.wording import number, percent
from ltmia.report.slices import Records

MANY = 0.5
"""Share of members flagged from which on it is the training that leaks and not single texts."""
FEW = 0.2
"""Share of members flagged up to which single texts may be at fault."""
HALF = 0.5
"""Share of the flags that a few groups hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing to do."""

    title: str
    evidence: str
    """What in this audit speaks for it."""
    todo: str


def advise(results: Results, records: Records) -> list[Advice]:
    """Return what the figures suggest, most pressing first; nothing if they suggest nothing."""
    looks = (_mend_the_audit, _fewer_epochs, _whole_training, _outliers, _groups, _repeats, _weights, _more_texts)
    return [found for look in looks if (found := look(results, records)) is not None]


def _mend_the_audit(results: Results, _records: Records) -> Advice | None:
    reasons = of_an_audit(results)
    return Advice(
        title="Mend the audit first",
        evidence=" ".join(reasons),
        todo="Until then the other figures say little.",
    ) if reasons else None  # fmt: skip


def _fewer_epochs(results: Results, _records: Records) -> Advice | None:
    """Training that makes the model worse on texts it never saw has gone on for too long."""
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
        "to leave out.",
        todo="An adapter (LoRA), fewer epochs or differential privacy lower what is learnt of every text.",
    )


def _outliers(results: Results, records: Records) -> Advice | None:
    """Some members stand out while the rest can hardly be told from texts never seen."""
    d, member = results.decisions, records.labels == 1
    if results.kind != "audit" or d.attack == CONTROL or not 0 < d.n_flagged <= FEW * d.n_judged:
        return None
    nonmembers = records.scores[records.labels == 0]
    with_them = auc(records.scores[member], nonmembers)
    without = auc(records.scores[member & ~records.flagged], nonmembers)
    if np.isnan(with_them) or np.isnan(without):
        return None
    return Advice(
        title="Look at the few that stand out",
        evidence=f"{d.n_flagged} of {d.n_judged} members are flagged. Without them the AUC is {number(without)}, "
        f"with them {number(with_them)}.",
        todo="Choose “flagged” in the table of records. Leave those texts out, or find out why they were learnt by "
        "heart: repeats, boilerplate, names.",
    )


def _groups(results: Results, records: Records) -> Advice | None:
    """A few groups hold half of the flags."""
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
        todo="See them under “Parts of the data”; leave them out, or take fewer texts of each.",
    )


def _repeats(results: Results, _records: Records) -> Advice | None:
    n = results.validity.near_duplicates.details.get("repeats_within_a_set")
    if results.kind != "audit" or not isinstance(n, int | float) or not n:
        return None
    return Advice(
        title="Remove repeats from the training file",
        evidence=f"{n:g} texts repeat another of their own set. A text that is read five times is learnt five times.",
        todo="Leave repeats out, near ones too, and fine-tune again.",
    )


def _weights(results: Results, _records: Records) -> Advice | None:
    """Whoever holds the weights finds more than whoever sees log-probabilities."""
    seen = {name: found.decisions for name, found in results.observers.items() if found.decisions is not None}
    weights, logprobs = seen.get("weights"), seen.get("logprobs")
    if weights is None or logprobs is None or weights.n_flagged <= logprobs.n_flagged:
        return None
    return Advice(
        title="Keep the weights to yourself",
        evidence=f"Whoever holds the weights of both models identifies {weights.n_flagged} records; whoever sees "
        f"log-probabilities only, {logprobs.n_flagged}.",
        todo="Offer the model behind an endpoint instead of handing it out.",
    )


def _more_texts(results: Results, _records: Records) -> Advice | None:
    d = results.decisions
    if d.can_flag or not d.n_judged:
        return None
    return Advice(
        title="Add non-members",
        evidence=f"With {d.n_calibration} to calibrate on no p-value is below {d.smallest_p:.2g}, so none of "
        f"{d.n_judged} records could be flagged, whatever the model gives away.",
        todo="Take a thousand non-members of the same kind, if you can.",
    )
