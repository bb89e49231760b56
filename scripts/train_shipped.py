"""Train the shipped classifiers on two labs and evaluate each: python scripts/train_shipped.py LAB REAL OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`, REAL that of `ltmia lab run recipes/real.toml`. A classifier
first learns from all combinations of LAB with training corpora (OUT/full-tiny), then from those of REAL (OUT/full). It
scores the combinations of LAB with test corpora and new architectures once; OUT/full-evaluation holds every figure.
`lite` is trained in the same way. Names after OUT choose which of the two to train. A second
call resumes where the first one was interrupted.
"""

import argparse
from pathlib import Path

from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import SHIPPED, MembershipClassifier
from ltmia.classifier.training import TrainingConfig
from ltmia.lab.evaluate import card_row, evaluate, find_combinations, recipe_of
from ltmia.lab.train import going_on_from, hold_out, train, untrained

EPOCHS, EPOCHS_REAL = 4, 6
"""Chosen on bases and corpora left out of the training grid together, and on corpora left out of REAL; docs/log.md."""


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description="Train the shipped classifiers on two labs and evaluate each.")
    for name in ("lab", "real", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHIPPED)}; default: all")
    parser.add_argument("--epochs", nargs=2, type=int, default=(EPOCHS, EPOCHS_REAL), help="On LAB, and on REAL.")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SHIPPED):
        parser.error(f"no such classifier is shipped: {', '.join(sorted(unknown))}")
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    tiny = find_combinations([args.lab / "stores"])
    test = [c for c in tiny if recipe_of(c)["role"] == "test"]
    real = find_combinations([args.real / "stores"])
    for name in args.names or SHIPPED:
        learned = learn(name, [c for c in tiny if c not in test], real, args)
        results = evaluate(learned, test, out / f"{name}-evaluation")
        learned.save_pretrained(out / name, {title: card_row(measured) for title, measured in results.items()})


def learn(
    name: str, tiny: list[Combination], real: list[Combination], args: argparse.Namespace
) -> MembershipClassifier:
    """Make one of the shipped classifiers: on tiny models first, then on a real one."""
    epochs, epochs_real = args.epochs
    data = hold_out(tiny, [], SHIPPED[name])
    start = train(untrained("conv", data), data, TrainingConfig(epochs=epochs), args.out / f"{name}-tiny", tell=print)
    data = hold_out(real, [], SHIPPED[name])
    config = TrainingConfig(epochs=epochs_real).going_on()
    return train(going_on_from(start, data), data, config, args.out / name, tell=print)


if __name__ == "__main__":
    main()
