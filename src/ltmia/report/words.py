"""How the page, the terminal and the notebook say things: figures with intervals, attacks in order, checks by name."""

from collections.abc import Mapping
from typing import NamedTuple

from ltmia.evaluation.blind_spots import of_an_audit
from ltmia.evaluation.results import Check, Measure, Results, Validity
from ltmia.evaluation.verdict import headline as verdict_headline

CONTROL = "bag_of_words"
FPR_NAMES: Mapping[str, str] = {"0.1": "10 %", "0.01": "1 %", "0.001": "0.1 %"}
"""False-positive rates by their key in the results, as people write them."""

ALARMS: Mapping[str, str] = {"0.001": "a thousand", "0.01": "a hundred", "0.1": "ten"}
"""The same, strictest first: one false alarm in so many."""

CHECK_NAMES: Mapping[str, str] = {
    "blind": "Words alone",
    "length_only": "Length alone",
    "near_duplicates": "Repeated texts",
    "base": "The right base",
    "out_of_distribution": "Like the classifier's training data",
    "expectation": "Enough to learn from",
    "backend": "Numeric noise",
    "power": "Enough texts",
}


class Light(NamedTuple):
    """How a check's outcome is shown: by word and shape, so that colour is never the only carrier."""

    word: str
    mark: str


LIGHTS: Mapping[str, Light] = {
    "ok": Light("fine", "✓"),
    "warning": Light("caution", "▲"),
    "failed": Light("failed", "✕"),
    "not_measured": Light("not measured", "–"),
}


SIGNS: Mapping[str, str] = {"failed": "✕", "passed": "✓", "inconclusive": "?"}
"""Shape of each verdict."""


def attack_order(results: Results) -> list[str]:
    """Return the attacks to show: the control first, then by AUC, falling."""
    rest = [name for name in results.attacks if name != CONTROL]
    rest.sort(key=lambda name: -(results.attacks[name].auc.value or 0.0))
    return ([CONTROL] if CONTROL in results.attacks else []) + rest


def named_checks(validity: Validity) -> list[tuple[str, Check]]:
    """Return the checks with the names people read, in the order of the page."""
    return [(name, getattr(validity, key)) for key, name in CHECK_NAMES.items()]


def cautions(results: Results) -> list[str]:
    """Name the checks that are not fine."""
    return [name for name, check in named_checks(results.validity) if check.status in ("warning", "failed")]


def headline(results: Results) -> str:
    """Say how many records are identifiable, out of how many, and at what price in errors."""
    judged = "training records" if results.kind == "audit" else "candidates"
    return verdict_headline(results.decisions, judged, of_an_audit(results))


OBSERVERS: Mapping[str, str] = {
    "logprobs": "Whoever sees log-probabilities",
    "weights": "Whoever holds the weights of both models",
}


def observer_lines(results: Results) -> list[str]:
    """Say for each observer how many records it can identify, or why it was not tried."""
    lines = []
    for key, who in OBSERVERS.items():
        found = results.observers.get(key)  # type: ignore[call-overload]  # mypy wants the literal
        if found is None:
            continue
        if found.decisions is None:
            lines.append(f"{who}: not tried ({found.reason}).")
        else:
            d = found.decisions
            lines.append(f"{who}: {d.n_flagged} of {d.n_judged} identified, by {found.attack}.")
    if results.update is not None:
        lines.append(f"The texts explain {100 * results.update.explained:.0f} % of the update of the weights.")
    return lines


def strongest(results: Results, fpr: str) -> tuple[str, Measure] | None:
    """Return the attack that finds most members at a false-positive rate, and how many; None if none is measured."""
    found = [
        (name, attack.tpr(fpr))
        for name, attack in results.attacks.items()
        if name != CONTROL and attack.tpr(fpr).value is not None
    ]
    return max(found, key=lambda pair: pair[1].value or 0.0, default=None)


def telling_rate(results: Results) -> str:
    """Return the strictest false-positive rate at which the deciding attack finds half of the members, else 10 %.

    Where nearly all are found at one false alarm in ten, that rate says little.
    """
    judge = results.attacks.get(results.decisions.attack)
    return next((fpr for fpr in ALARMS if judge is not None and (judge.tpr(fpr).value or 0.0) >= 0.5), "0.1")


def unread(results: Results) -> str | None:
    """Say of how many texts only the beginning was read, and of how many nothing; None if all were read whole."""
    data = results.data
    n_texts = data.n_members + data.n_candidates + data.n_nonmembers
    said = []
    if data.n_cut:
        longest = results.settings["max_length"] == results.settings.get("max_positions")
        cure = (
            "The models take no longer ones: cut the texts into passages."
            if longest
            else "A larger `max_length` reads more."
        )
        said.append(
            f"Of each text no more than {results.settings['max_length']} tokens are read: {data.n_cut} of {n_texts} "
            f"are longer, and what they give away further on is not seen. {cure}"
        )
    if data.n_unscorable:
        said.append(
            f"{data.n_unscorable} of {n_texts} texts could not be scored; `reason` in records.parquet says why."
        )
    return " ".join(said) or None


def not_shown(results: Results) -> list[str]:
    """Say what the verdict does not show: short sentences composed from figures, for the side of the verdict."""
    d = results.decisions
    said = []
    best = strongest(results, "0.1")
    if not d.n_flagged:
        clue = ""
        if best is not None:
            clue = (
                f" Allowed one false alarm in ten, {best[0]} finds {100 * (best[1].value or 0):.0f} % of the members."
            )
        said.append(
            f"None flagged is not “nothing leaks”: {d.n_calibration} non-members to calibrate on give no "
            f"p-value below {d.smallest_p:.2g}.{clue}"
        )
    if unseen := unread(results):
        said.append(unseen)
    return [
        *said,
        "A record that is not flagged may still have been used: an attack can miss it.",
        f"A flag is evidence, not proof. On average at most {100 * d.fdr:g} % of flags are wrong, "
        "if the non-members are like the records judged.",
        "Only membership was tested, by these attacks: not whether texts can be drawn out of the model word for word, "
        "and a stronger attack may find more.",
    ]
