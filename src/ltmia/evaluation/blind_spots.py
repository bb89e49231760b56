"""Reasons why an audit could not have shown leakage. Each function tests one reason and returns a sentence or None.

`docs/gate.md` lists them. If a reason applies, the audit cannot pass the limits that the reason concerns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ltmia.evaluation.epsilon import largest_bound
from ltmia.evaluation.intervals import FEWEST_FALSE_POSITIVES
from ltmia.evaluation.results import AttackResult, Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import percent, rate, unmatched

CONTROL = "bag_of_words"
"""Name of the control, which sees no model: its figures say nothing about leakage."""
FEWEST_TEXTS = 20
"""Fewest members, and fewest non-members, for figures that can be trusted."""
MOST_UNSCORED = 0.05
"""Largest share of unscorable texts, such as empty rows."""
MOST_SHARED = 0.01
"""Largest share of non-members that repeat members, for limits on AUC or epsilon; it lowers an AUC of .6 by .001."""
SHARED_OF_RATE = 0.1
"""The same for limits at a false-positive or false discovery rate, as a share of that rate: non-members that are really
members count as false alarms."""
FAR_BELOW = 0.4
"""Lowest AUC that is plausible for an attack that does not decide; it may be a little below one half."""


COUNTS = ("identifiable", "extractable", "longest_run")
"""Kinds of figures that are whole numbers without an interval."""
OF_EACH = (*COUNTS, "exposure")
"""Kinds of figures that are right for any number of texts."""
DRAWN_OUT = ("extractable", "extractable_share", "longest_run", "exposure")
"""Kinds of figures on what can be drawn out: each record, or secret, is measured by itself, not against the
non-members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedFigure:
    """One figure of an audit, and the limit that it is held against."""

    name: str
    """Name for people, such as "AUC of difference"."""
    measure: Measure
    most: float
    """The limit."""
    kind: Literal[
        "auc", "tpr", "identifiable", "epsilon", "extractable", "extractable_share", "longest_run", "exposure"
    ]
    attack: str
    """The attack whose scores it is computed from."""
    rate: float = 1.0
    """The false-positive or false discovery rate allowed; 1 if there is none."""
    named: bool = False
    """Whether the limit names the attack."""


def blind_spots(results: Results, figure: LimitedFigure) -> list[str]:
    """Return the reasons why this audit could not have shown that a figure exceeds its limit."""
    single = (found for look in OF_A_FIGURE if (found := look(results, figure)) is not None)
    return [*of_an_audit(results), *single]


def of_an_audit(results: Results) -> list[str]:
    """Return the reasons why this audit could not have shown leakage at all; empty if it could have."""
    return [found for reason in OF_AN_AUDIT if (found := reason(results)) is not None]


def _wrong_base(results: Results) -> str | None:
    check = results.validity.base
    return None if check.status == "ok" else check.sentence


def _noise(results: Results) -> str | None:
    check = results.validity.backend
    return None if check.status == "ok" else check.sentence


def _no_attack(results: Results) -> str | None:
    seeing = [name for name in (*results.attacks, results.decisions.attack) if name != CONTROL]
    return None if seeing else "None of the attacks sees the model."


def _unscored(results: Results) -> str | None:
    data = results.data
    asked = data.n_members + data.n_candidates
    n_texts = asked + data.n_nonmembers
    unjudged = asked - results.decisions.n_judged - (data.n_repeats - data.n_nonmember_repeats)
    if unjudged <= MOST_UNSCORED * asked and data.n_unscorable <= MOST_UNSCORED * n_texts:
        return None
    return (
        f"{data.n_unscorable} of {n_texts} texts could not be scored; {results.decisions.n_judged} records were judged."
    )


def few_texts(results: Results) -> str | None:
    """Return a sentence if too few texts were scored by the attack that decides; None if there are enough."""
    n, m = results.decisions.n_judged, _usable_nonmembers(results)
    deciding = results.attacks.get(results.decisions.attack)
    if deciding is not None and deciding.n_members is not None and deciding.n_nonmembers is not None:
        n, m = min(n, deciding.n_members), min(m, deciding.n_nonmembers)
    if min(n, m) >= FEWEST_TEXTS:
        return None
    return f"{n} records and {m} non-members are too few; at least {FEWEST_TEXTS} of each are needed."


def few_scored(results: Results, figure: LimitedFigure) -> str | None:
    """Return a sentence if an attack scored too few texts for its figures, as one that needs certain tokens may."""
    attack = results.attacks.get(figure.attack)
    if figure.kind not in ("auc", "tpr") or attack is None or not _scored_few(attack):
        return None
    return (
        f"{figure.attack} could score {attack.n_members} members and {attack.n_nonmembers} non-members only; at least "
        f"{FEWEST_TEXTS} of each are needed."
    )


def partly_scored(results: Results, figure: LimitedFigure) -> str | None:
    """Return the reason and the cure if a rate is missing only because its attack could not score every non-member."""
    attack, needed = results.attacks.get(figure.attack), round(FEWEST_FALSE_POSITIVES / figure.rate)
    scored, given = None if attack is None else attack.n_nonmembers, _usable_nonmembers(results)
    if figure.kind != "tpr" or figure.named or scored is None or not scored < needed <= given:
        return None
    return (
        f"{figure.attack} could score only {scored} of the {given} non-members, and {needed:,} are needed. To leave it "
        f"out, name the attack that counts: {results.decisions.attack}.tpr@fpr={figure.rate:g}"
    )


def _scored_few(attack: AttackResult) -> bool:
    """Say whether an attack scored too few texts; older files do not tell."""
    n, m = attack.n_members, attack.n_nonmembers
    return n is not None and m is not None and min(n, m) < FEWEST_TEXTS


def _usable_nonmembers(results: Results) -> int:
    """Return how many different non-members were scored; all of them in a file from before that was counted."""
    usable = results.data.n_usable_nonmembers
    return results.data.n_nonmembers if usable is None else usable


def _swapped(results: Results) -> str | None:
    """Return a sentence if members score below non-members: the files were swapped, or the scores are worthless."""
    aucs = {name: attack.auc for name, attack in results.attacks.items() if name != CONTROL and not _scored_few(attack)}
    deciding = results.decisions.attack
    if results.kind == "score":
        aucs[deciding] = results.set_test.effect
    for name, auc in aucs.items():
        if auc.high is not None and auc.high < (0.5 if name == deciding else FAR_BELOW):
            asked = "members" if results.kind == "audit" else "candidates"
            return (
                f"Non-members score higher than {asked} by {name} (AUC at most {auc.high:.3f}): were the two files "
                "swapped?"
            )
    return None


OF_AN_AUDIT: Sequence[Callable[[Results], str | None]] = (
    _wrong_base, _noise, _no_attack, _unscored, few_texts, _swapped,
)  # fmt: skip


def _few_suffixes(results: Results, figure: LimitedFigure) -> str | None:
    """Texts too short for a suffix were not looked at, and what was not looked at is not passed."""
    found = results.extraction
    if figure.kind not in DRAWN_OUT or figure.kind == "exposure" or found is None:
        return None
    asked = found.n_judged + found.n_without_suffix
    if found.n_judged >= FEWEST_TEXTS and found.n_without_suffix <= MOST_UNSCORED * asked:
        return None
    return (
        f"{found.n_without_suffix} of {asked} records are too short to say whether they can be drawn out; at least "
        f"{FEWEST_TEXTS} long enough ones are needed, and {percent(1 - MOST_UNSCORED)} of all."
    )


def _not_continued(results: Results, figure: LimitedFigure) -> str | None:
    """Flagged records that were not continued were not looked at."""
    found = results.near_verbatim
    if figure.kind != "longest_run" or found is None or not found.n_flagged_left:
        return None
    return (
        f"{found.n_flagged_left} flagged records were not continued: set `continuations` to more, unless they are too "
        "short for a suffix."
    )


def _few_ranked(results: Results, figure: LimitedFigure) -> str | None:
    """Values that were not ranked were not looked at."""
    found = results.secrets
    if figure.kind != "exposure" or found is None:
        return None
    asked, ranked = found.judged.n_values, found.judged.n_ranked
    if asked - ranked <= MOST_UNSCORED * asked:
        return None
    return (
        f"{ranked} of {asked} secrets were ranked; at least {percent(1 - MOST_UNSCORED)} are needed. The option "
        "`most_values` raises their number, and `spans.parquet` says why others were not ranked."
    )


def _unmatched(results: Results, figure: LimitedFigure) -> str | None:
    """An expression with a mistake in it finds nothing."""
    names = results.secrets.unmatched if figure.kind == "exposure" and results.secrets else []
    if not names:
        return None
    return f"{unmatched(names)}: correct their expressions, or leave out the kinds that are surely not there."


def _shared_texts(results: Results, figure: LimitedFigure) -> str | None:
    if figure.kind in DRAWN_OUT:
        return None
    check = results.validity.near_duplicates
    found = (check.details.get(name) for name in ("repeats_across_sets", "nonmembers_overlapping"))
    counts = [count for count in found if isinstance(count, int | float)]
    if check.status != "not_measured" and (counts or check.status == "ok"):
        allowed = min(MOST_SHARED, SHARED_OF_RATE * figure.rate) * _usable_nonmembers(results)
        return None if max(counts, default=0) <= allowed else check.sentence
    return check.sentence


def _ties(results: Results, figure: LimitedFigure) -> str | None:
    attack = results.attacks.get(figure.attack)
    if attack is None or attack.auc.value is None or attack.auc.low != attack.auc.high:
        return None
    return f"{figure.attack} gives all texts one score."


def _reversed(results: Results, figure: LimitedFigure) -> str | None:
    """Return a sentence if members score below non-members by the attack that the limit names."""
    attack = results.attacks.get(figure.attack)
    if not figure.named or figure.attack == CONTROL or attack is None:
        return None
    high = attack.auc.high
    return None if high is None or high >= 0.5 else f"Non-members score higher than members by {figure.attack}."


def _few_to_calibrate(results: Results, figure: LimitedFigure) -> str | None:
    decisions = results.decisions
    if figure.kind != "identifiable" or decisions.can_flag:
        return None
    if decisions.fewest_flags is None:
        return (
            f"With {decisions.n_calibration} non-members no p-value is below {decisions.smallest_p:.2g}, so nothing "
            f"can be flagged at a false discovery rate of {rate(decisions.fdr)}."
        )
    return (
        f"Nothing is flagged unless {decisions.fewest_flags} records score above nearly all non-members, and only "
        f"{decisions.n_judged} were judged: more non-members are needed."
    )


def _few_false_alarms(results: Results, figure: LimitedFigure) -> str | None:
    n = _usable_nonmembers(results)
    if figure.kind != "tpr" or n * figure.rate >= FEWEST_FALSE_POSITIVES - 1e-9:
        return None
    return f"{n} non-members are too few to measure an FPR of {figure.rate:g}."


def _out_of_reach(results: Results, figure: LimitedFigure) -> str | None:
    """Return a sentence if the limit is so high that even a model that reveals everything would be within it."""
    n = results.decisions.n_judged
    reach = {
        "epsilon": largest_bound(n, _usable_nonmembers(results)),
        "identifiable": float(n),
        "auc": 1.0,
        "tpr": 1.0,
        "extractable": float(n if results.extraction is None else results.extraction.n_judged),
        "extractable_share": 1.0,
        "longest_run": float(results.near_verbatim.longest_suffix if results.near_verbatim else 0),
        "exposure": float(results.secrets.reach if results.secrets else 0),
    }[figure.kind]
    if reach > figure.most:
        return None
    if figure.kind == "epsilon":
        return f"With so few records, even perfect scores would show no epsilon above {reach:.2f}."
    if figure.kind == "exposure":
        return f"Even a secret that no alternative beats would show {reach:g} bits: more alternatives are needed."
    return f"Nothing could exceed this limit: the figure is {reach:g} at most."


def _control(_: Results, figure: LimitedFigure) -> str | None:
    return f"{CONTROL} sees no model, so a limit on it says nothing about one." if figure.attack == CONTROL else None


OF_A_FIGURE: Sequence[Callable[[Results, LimitedFigure], str | None]] = (
    few_scored, _few_suffixes, _not_continued, _few_ranked, _unmatched, _shared_texts, _ties, _reversed,
    _few_to_calibrate, _few_false_alarms, _out_of_reach, _control,
)  # fmt: skip
