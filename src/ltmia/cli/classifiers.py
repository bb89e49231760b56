"""The commands that make classifiers: `train` on stores, `evaluate` on others."""

from pathlib import Path
from typing import Annotated

import typer

from ltmia.cli import options as o
from ltmia.cli.progress import progress

Stores = Annotated[list[Path], typer.Argument(help="Stores, or folders that hold stores, such as LAB/stores.")]


def train(
    stores: Stores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the classifier.")],
    hold_out: Annotated[
        list[str] | None,
        typer.Option("--hold-out", help="Base or corpus whose combinations choose the epoch and are not learnt from."),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 6,
    seed: o.Seed = 0,
) -> None:
    """Train a classifier on labelled stores."""
    from ltmia.classifier.membership import MembershipClassifier
    from ltmia.classifier.training import TrainingConfig
    from ltmia.pipelines.examine import find_combinations, recipe_of

    combinations = find_combinations(stores)
    left_out = set(hold_out or [])
    validation = [c for c in combinations if left_out & {recipe_of(c).get("base"), recipe_of(c).get("corpus")}]
    training = [c for c in combinations if c not in validation]
    config = TrainingConfig(epochs=epochs, seed=seed)
    MembershipClassifier().fit(training, validation, config=config, report=print).save_pretrained(out)
    print(f"{out}: trained on {len(training)} combinations, {len(validation)} held out")


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a classifier.")],
    stores: Stores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for exam.json and exam.md.")],
    quiet: o.Quiet = False,
) -> None:
    """Evaluate a classifier on stores it was not trained on, beside every baseline."""
    from ltmia.classifier.membership import MembershipClassifier
    from ltmia.pipelines.examine import TABLES_FILE, find_combinations
    from ltmia.pipelines.examine import evaluate as run_evaluate

    classifier = MembershipClassifier.from_pretrained(model)
    with progress(quiet=quiet) as report:
        run_evaluate(classifier, find_combinations(stores), out, report=report)
    if not quiet:
        print((out / TABLES_FILE).read_text("utf-8"))
