"""Train the first shipped classifier: python scripts/train_first.py STORES OUT.

Trains on every combination whose base is not an exam base, for the number of epochs that did best on held-out
combinations (five: leaving out the qwen2 base and the email corpus), then scores the exam combinations once.
"""

import sys
from pathlib import Path

import numpy as np

from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.training import TrainingConfig, predict_logits
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import AttackResult
from ltmia.report.page import format_measure

EXAM_BASES = ("recurrent_gemma",)
CONFIG = TrainingConfig(epochs=5)


def exam_row(classifier: MembershipClassifier, combination: Combination) -> dict[str, str]:
    """Return AUC and TPR at 1 % FPR of the classifier and of the best baseline by AUC, with intervals by document."""
    names = combination.store.texts["group"].to_pylist()
    _, index = np.unique(names, return_inverse=True)
    members, nonmembers = combination.members, combination.nonmembers

    def measured(scores: np.ndarray) -> AttackResult:
        return measure_attack(
            scores[members], scores[nonmembers], member_groups=index[members], nonmember_groups=index[nonmembers]
        )

    own = measured(predict_logits(classifier.network_, combination, classifier.feature_version))
    baselines = {name: measured(combination.store.scores(name)) for name in combination.store.score_names}
    best = max(baselines, key=lambda name: baselines[name].auc.value or 0.0)
    best_tpr = max(baselines, key=lambda name: baselines[name].tpr_at_fpr["0.01"].value or 0.0)
    return {
        "auc": format_measure(own.auc),
        "baseline_auc": f"{best} {format_measure(baselines[best].auc)}",
        "tpr": format_measure(own.tpr_at_fpr["0.01"]),
        "baseline_tpr": f"{best_tpr} {format_measure(baselines[best_tpr].tpr_at_fpr['0.01'])}",
    }


def main() -> None:
    """Train, sit the exam, save."""
    stores, out = Path(sys.argv[1]), Path(sys.argv[2])
    combinations = [Combination(p.parent) for p in sorted(stores.glob("*/manifest.json"))]
    exam = [c for c in combinations if c.name.startswith(EXAM_BASES)]
    training = [c for c in combinations if not c.name.startswith(EXAM_BASES)]
    classifier = MembershipClassifier().fit(training, config=CONFIG, report=print)
    classifier.save_pretrained(out, {c.name: exam_row(classifier, c) for c in exam})
    print((out / "README.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
