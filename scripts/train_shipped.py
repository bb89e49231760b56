"""Train the shipped classifier on the stores of a lab, and examine it once: python scripts/train_shipped.py LAB OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`. The number of epochs is chosen on combinations whose base and
corpus are both left out of a first training; then all combinations with training corpora are trained on, and those
with exam corpora, of architectures never trained on either, are scored once. OUT-exam/ holds every figure.
"""

import sys
from pathlib import Path

from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.training import EpochRecord, TrainingConfig
from ltmia.pipelines.examine import card_row, evaluate, find_combinations, recipe_of

HELD_OUT_BASES = ("qwen2", "phi")
HELD_OUT_CORPORA = ("email", "novels")
EPOCHS = (3, 6)


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


def main() -> None:
    """Choose, train, sit the exam, save."""
    combinations, out = find_combinations([Path(sys.argv[1]) / "stores"]), Path(sys.argv[2])
    training = [c for c in combinations if recipe_of(c)["role"] == "train"]
    exam = [c for c in combinations if recipe_of(c)["role"] == "exam"]
    epochs = choose_epochs(training)
    classifier = MembershipClassifier().fit(training, config=TrainingConfig(epochs=epochs), report=print)
    examined = evaluate(classifier, exam, out.with_name(out.name + "-exam"))
    classifier.save_pretrained(out, {name: card_row(measured) for name, measured in examined.items()})


if __name__ == "__main__":
    main()
