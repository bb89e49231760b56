"""Train the shipped classifier on the stores of a lab, and examine it once: python scripts/train_shipped.py LAB OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`. The number of epochs is chosen on combinations whose base and
corpus are both left out of a first training; then all combinations with training corpora are trained on, and those
with exam corpora, of architectures never trained on either, are scored once. OUT/exam.json holds every figure.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.training import EpochRecord, TrainingConfig, predict_logits
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import AttackResult
from ltmia.report.page import format_measure

HELD_OUT_BASES = ("qwen2", "phi")
HELD_OUT_CORPORA = ("email", "novels")
EPOCHS = (3, 6)


def recipe_of(combination: Combination) -> dict[str, Any]:
    """Return what the lab wrote down of a combination."""
    return dict(combination.store.manifest["combination"])


def choose_epochs(training: list[Combination]) -> int:
    """Return the number of epochs that does best on held-out bases x held-out corpora."""
    seen = [c for c in training if _held_out(c) == (False, False)]
    unseen = [c for c in training if _held_out(c) == (True, True)]
    last: dict[int, float] = {}
    for epochs in EPOCHS:
        records: list[EpochRecord] = []
        MembershipClassifier().fit(seen, unseen, config=TrainingConfig(epochs=epochs), report=records.append)
        last[epochs] = records[-1].validation_auc or 0.0
        print("selection", epochs, [round(r.validation_auc or 0.0, 4) for r in records], flush=True)
    return max(last, key=lambda epochs: last[epochs])


def _held_out(combination: Combination) -> tuple[bool, bool]:
    recipe = recipe_of(combination)
    return recipe["base"] in HELD_OUT_BASES, recipe["corpus"] in HELD_OUT_CORPORA


def examine(classifier: MembershipClassifier, combination: Combination) -> dict[str, AttackResult]:
    """Measure the classifier and every baseline on one combination, with intervals by document."""
    _, index = np.unique(combination.store.texts["group"].to_pylist(), return_inverse=True)
    members, nonmembers = combination.members, combination.nonmembers
    scores = {"ltmia": predict_logits(classifier.network_, combination, classifier.feature_version)}
    scores |= {name: combination.store.scores(name) for name in combination.store.score_names}
    return {
        name: measure_attack(
            values[members], values[nonmembers], member_groups=index[members], nonmember_groups=index[nonmembers]
        )
        for name, values in scores.items()
    }


def card_row(measured: dict[str, AttackResult]) -> dict[str, str]:
    """Set the classifier beside the best baseline by each figure."""
    row = {}
    for title, pick in (
        ("auc", lambda result: result.auc),
        ("tpr_at_0.01", lambda result: result.tpr_at_fpr["0.01"]),
        ("tpr_at_0.001", lambda result: result.tpr_at_fpr["0.001"]),
    ):
        baselines = {name: pick(result) for name, result in measured.items() if name != "ltmia"}
        best = max(baselines, key=lambda name: baselines[name].value or 0.0)
        row[title] = format_measure(pick(measured["ltmia"]))
        row[f"best_baseline_{title}"] = f"{best} {format_measure(baselines[best])}"
    return row


def main() -> None:
    """Choose, train, sit the exam, save."""
    stores, out = Path(sys.argv[1]) / "stores", Path(sys.argv[2])
    combinations = [Combination(p.parent) for p in sorted(stores.glob("*/manifest.json"))]
    training = [c for c in combinations if recipe_of(c)["role"] == "train"]
    exam = [c for c in combinations if recipe_of(c)["role"] == "exam"]
    epochs = choose_epochs(training)
    classifier = MembershipClassifier().fit(training, config=TrainingConfig(epochs=epochs), report=print)
    classifier.save_pretrained(out)
    figures, rows = {}, {}
    for combination in exam:
        measured = examine(classifier, combination)
        rows[combination.name] = card_row(measured)
        figures[combination.name] = {name: result.model_dump() for name, result in measured.items()}
        print(combination.name, json.dumps(rows[combination.name]), flush=True)
    classifier.save_pretrained(out, rows)
    (out / "exam.json").write_text(json.dumps(figures, indent=1), "utf-8")


if __name__ == "__main__":
    main()
