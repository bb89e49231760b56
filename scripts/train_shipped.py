"""Train the shipped classifier on the stores of a lab, and examine it once: python scripts/train_shipped.py LAB OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`. All combinations with training corpora are trained on; those
with exam corpora, of architectures never trained on either, are scored once. OUT-exam/ holds every figure. A second
call goes on where the first one was interrupted.
"""

import sys
from pathlib import Path

from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.training import TrainingConfig
from ltmia.pipelines.examine import card_row, evaluate, find_combinations, recipe_of
from ltmia.pipelines.train import hold_out, train

EPOCHS = 4
"""Chosen on bases and corpora left out of the training grid together, see docs/log.md."""


def main() -> None:
    """Train, sit the exam, save."""
    combinations, out = find_combinations([Path(sys.argv[1]) / "stores"]), Path(sys.argv[2])
    exam = [c for c in combinations if recipe_of(c)["role"] == "exam"]
    classifier = MembershipClassifier()
    data = hold_out([c for c in combinations if c not in exam], [], classifier.feature_version)
    trained = train(classifier, data, TrainingConfig(epochs=EPOCHS), out, tell=print)
    examined = evaluate(trained, exam, out.with_name(out.name + "-exam"))
    trained.save_pretrained(out, {name: card_row(measured) for name, measured in examined.items()})


if __name__ == "__main__":
    main()
