"""Train the shipped classifiers on the stores of a lab, and examine each once: python scripts/train_shipped.py LAB OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`. All combinations with training corpora are trained on; those
with exam corpora, of architectures never trained on either, are scored once. OUT/full and OUT/lite are the
classifiers, OUT/full-exam and OUT/lite-exam hold every figure; behind OUT the names of those wanted may follow. A
second call goes on where the first one was interrupted.
"""

import sys
from pathlib import Path

from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import SHIPPED, MembershipClassifier
from ltmia.classifier.training import TrainingConfig
from ltmia.pipelines.examine import card_row, evaluate, find_combinations, recipe_of
from ltmia.pipelines.train import hold_out, train

EPOCHS = 4
"""Chosen on bases and corpora left out of the training grid together, see docs/log.md."""


def main() -> None:
    """Train, sit the exam, save."""
    combinations, out = find_combinations([Path(sys.argv[1]) / "stores"]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or SHIPPED:
        ship(name, combinations, out)


def ship(name: str, combinations: list[Combination], out: Path) -> None:
    """Make one of the shipped classifiers, with its exam beside it."""
    exam = [c for c in combinations if recipe_of(c)["role"] == "exam"]
    classifier = MembershipClassifier(feature_version=SHIPPED[name])
    data = hold_out([c for c in combinations if c not in exam], [], classifier.feature_version)
    trained = train(classifier, data, TrainingConfig(epochs=EPOCHS), out / name, tell=print)
    examined = evaluate(trained, exam, out / f"{name}-exam")
    trained.save_pretrained(out / name, {title: card_row(measured) for title, measured in examined.items()})


if __name__ == "__main__":
    main()
