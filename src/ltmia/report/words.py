"""Words and order shared by the page, the terminal and the notebook: names of checks, order of attacks, sentences."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ltmia.attacks.table import ATTACKS
from ltmia.evaluation.blind_spots import of_an_audit
from ltmia.evaluation.results import Check, Results, UpdateInfo, Validity
from ltmia.evaluation.section import Measure
from ltmia.evaluation.verdict import headline as verdict_headline
from ltmia.evaluation.wording import percent

CONTROL = "bag_of_words"
FPR_NAMES: Mapping[str, str] = {"0.1": "10 %", "0.01": "1 %", "0.001": "0.1 %"}
"""False-positive rates as people write them, by their key in the results."""

ALARMS: Mapping[str, str] = {"0.001": "a thousand", "0.01": "a hundred", "0.1": "ten"}
"""The same rates as numbers of texts with one false alarm; the strictest comes first."""

CHECK_NAMES: Mapping[str, str] = {
    "blind": "Words alone",
    "length_only": "Length alone",
    "near_duplicates": "Repeated texts",
    "base": "The right base",
    "out_of_distribution": "Like the classifier's training data",
    "expectation": "Enough to learn from",
    "length_read": "Read as far as trained",
    "backend": "Numeric noise",
    "power": "Enough texts",
}
PROBLEMS: Mapping[str, str] = {
    "blind": "words alone tell the texts apart",
    "length_only": "length alone tells the texts apart",
    "near_duplicates": "repeated texts",
    "base": "target and base do not fit",
    "out_of_distribution": "unlike the classifier's training data",
    "expectation": "too few texts to learn from",
    "length_read": "texts are read further than the target was trained on",
    "backend": "numeric noise",
    "power": "too few texts to tell",
}
"""What is wrong if a check warns; the name of a check alone could be read as good news."""


class Light(NamedTuple):
    """Word and shape that show the outcome of a check, so that nobody needs to see colours."""

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
    """Return the names of the attacks: the control first, then the others from highest to lowest AUC."""
    rest = [name for name in results.attacks if name != CONTROL]
    rest.sort(key=lambda name: -(results.attacks[name].auc.value or 0.0))
    return ([CONTROL] if CONTROL in results.attacks else []) + rest


def named_checks(validity: Validity) -> list[tuple[str, Check]]:
    """Return each check with its name, in the order of the page."""
    return [(name, getattr(validity, key)) for key, name in CHECK_NAMES.items()]


def cautions(results: Results) -> list[str]:
    """Return the problems that the checks found."""
    checks = results.validity
    return [said for key, said in PROBLEMS.items() if getattr(checks, key).status in ("warning", "failed")]


def headline(results: Results) -> str:
    """Say how many records are identifiable, of how many, and how many flags may be wrong."""
    judged = "training records" if results.kind == "audit" else "candidates"
    return verdict_headline(results.decisions, judged, of_an_audit(results))


OBSERVERS: Mapping[str, str] = {
    "logprobs": "Attackers who see log-probabilities",
    "weights": "Attackers who hold the weights of both models",
    "training_run": "Attackers who also hold checkpoints of the training run",
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
        lines.append(f"The texts explain {percent(results.update.explained)} of the update of the weights.")
        lines.append(_what_was_read(results.update))
        if results.update.unread:
            lines.append(
                f"{percent(results.update.unread)} of the weights that changed in these layers were not read, because "
                "their layers mix the tokens of several texts or stack experts: what these reveal was not tested."
            )
        if results.update.rounded:
            lines.append(
                f"{percent(results.update.rounded)} of the target's weights look rounded, so the update is known less "
                "exactly there."
            )
    return lines


def _what_was_read(update: UpdateInfo) -> str:
    """Say at which weights the update was read, and where gradients were computed."""
    layers = update.layers
    runs_on = len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1))
    named = f"{layers[0]} to {layers[-1]}" if runs_on else ", ".join(map(str, layers))
    *first, last = (f"{point:g}" for point in update.points)
    points = f"{', '.join(first)} and {last}" if first else last
    return (
        f"The update was read at {update.n_coordinates:,} weights of layer{'s' * (len(layers) > 1)} {named}, and each "
        f"text's gradient at {points} of the way from base (0) to target (1)."
    )


def of_group(row: Mapping[str, Any] | None, column: str) -> str:
    """Write a value of a group's row; a dash where there is none."""
    value = None if row is None else row.get(column)
    if value is None or value != value:
        return "–"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def strongest(results: Results, fpr: str) -> tuple[str, Measure] | None:
    """Return the attack with the highest TPR at a false-positive rate, and this TPR; None if none was measured."""
    found = [
        (name, attack.tpr(fpr))
        for name, attack in results.attacks.items()
        if name != CONTROL and attack.tpr(fpr).value is not None
    ]
    return max(found, key=lambda pair: pair[1].value or 0.0, default=None)


def telling_rate(results: Results) -> str:
    """Return the strictest false-positive rate at which the deciding attack finds half of the members, else 10 %.

    If an attack finds nearly all members at 10 %, a stricter rate says more.
    """
    judge = results.attacks.get(results.decisions.attack)
    return next((fpr for fpr in ALARMS if judge is not None and (judge.tpr(fpr).value or 0.0) >= 0.5), "0.1")


def unread(results: Results) -> str | None:
    """Say what was not read: texts that were cut or could not be scored, half of a pair; None if all was read."""
    data = results.data
    n_texts = data.n_members + data.n_candidates + data.n_nonmembers
    said = []
    if data.preference_pairs:
        both = any(name in ATTACKS and ATTACKS[name].pairs for name in (*results.attacks, results.decisions.attack))
        said.append(
            "Each record is a preference pair. The attacks `premia_pair` and `premia_rejected` read the rejected "
            "completion; the other attacks read only the chosen one, and the control counts the words of both."
            if both
            else "Each record is a preference pair, of which only the chosen completion was read."
        )
    if data.n_cut:
        longest = results.settings.get("max_length") == results.settings.get("max_positions")
        cure = (
            "The models accept no longer texts: split the texts into passages."
            if longest
            else "A larger `max_length` reads more, if both models were recorded with one."
            if results.target.recorded_by is not None
            else "A larger `max_length` reads more."
        )
        said.append(
            f"Only the first {results.settings.get('max_length')} tokens of each text were read. {data.n_cut} of "
            f"{n_texts} texts are longer; what the rest of them reveals was not tested. {cure}"
        )
    if data.n_unscorable:
        said.append(
            f"{data.n_unscorable} of {n_texts} texts could not be scored; `reason` in records.parquet says why."
        )
    return " ".join(said) or None


def not_shown(results: Results) -> list[str]:
    """Return short sentences on what the verdict does not show."""
    d = results.decisions
    said = []
    best = strongest(results, "0.1")
    if not d.n_flagged:
        clue = ""
        if best is not None and results.validity.base.status != "failed":
            clue = (
                f" Allowed one false alarm in ten, {best[0]} finds {100 * (best[1].value or 0):.0f} % of the members."
            )
        said.append(
            f"No flags do not mean that nothing leaks: with {d.n_calibration} calibration texts, no "
            f"p-value can be below {d.smallest_p:.2g}.{clue}"
        )
    if unseen := unread(results):
        said.append(unseen)
    return [
        *said,
        "A record that is not flagged may still have been used, because an attack can miss it.",
        f"A flag is evidence, not proof. On average at most {100 * d.fdr:g} % of flags are wrong, "
        "if the non-members are like the records judged.",
        "Only these attacks were tried. To draw texts out of the model, only their own beginnings were tried. Other "
        "attacks may find more.",
    ]
