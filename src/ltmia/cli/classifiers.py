"""The commands that make classifiers: `train` on stores, `evaluate` on others."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from ltmia.cli import options as o
from ltmia.cli.progress import progress

Stores = Annotated[list[Path], typer.Argument(help="Stores, or folders that hold stores, such as LAB/stores.")]


def _network(value: str | None) -> str | None:
    from ltmia.classifier.networks import NETWORKS

    return _one_of(value, NETWORKS)


def _feature_version(value: str | None) -> str | None:
    from ltmia.features.columns import FEATURE_VERSIONS

    return _one_of(value, FEATURE_VERSIONS)


def _one_of(value: str | None, names: Collection[str]) -> str | None:
    if value is not None and value not in names:
        raise typer.BadParameter(f"{value!r}: expected {', '.join(names)}")
    return value


HoldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--hold-out", help="Base, corpus or store to leave out of training; its combinations choose the epoch to keep."
    ),
]
Start = Annotated[
    str | None,
    typer.Option("--start", help="Classifier to start from: full, lite, a folder or a hub id. Default: none."),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        callback=_network,
        metavar="conv|published",
        help="conv: our network; published: that of the LT-MIA paper, with its loss and schedule. Default: that of "
        "--start, else conv.",
    ),
]
FeatureVersion = Annotated[
    str | None,
    typer.Option(
        "--feature-version",
        callback=_feature_version,
        metavar="excess|lite|logratio|published",
        help="Feature columns to read; docs/features.md describes them. Default: those of --start, else excess.",
    ),
]


def train(
    stores: Stores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the classifier; running again resumes.")],
    hold_out: HoldOut = None,
    start: Start = None,
    network: Network = None,
    feature_version: FeatureVersion = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the stores; default: 6 (published: 80)."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, help="Stop when the held-out AUC has not risen for this many epochs."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of initialisation, batches and dropout.")] = 0,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a classifier on labelled stores."""
    if patience is not None and not hold_out:
        raise typer.BadParameter("needs --hold-out: held-out combinations decide when to stop", param_hint="--patience")
    if start is not None and (network or feature_version):
        raise typer.BadParameter(
            "has a network and features already: leave out --network and --feature-version", param_hint="--start"
        )
    from ltmia.classifier.membership import chosen_classifier
    from ltmia.lab import train as training
    from ltmia.lab.evaluate import find_combinations

    started = None if start is None else chosen_classifier(start)
    version = started.feature_version if started else feature_version or "excess"
    data = training.hold_out(find_combinations(stores), hold_out or [], version)
    classifier = training.going_on_from(started, data) if started else training.untrained(network or "conv", data)
    chosen = {"epochs": epochs} if epochs else {}
    config = training.usual_config(classifier, data, patience=patience, seed=seed, **chosen)

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    with progress(quiet=quiet) as report:
        classifier = training.train(classifier, data, config, out, overwrite=overwrite, report=report, tell=tell)
    if not quiet:
        print(
            f"{out}: trained on {len(data.training)} combinations, {len(data.validation)} held out; "
            f"{training.kept_line(classifier)}"
        )


def evaluate(
    model: Annotated[str, typer.Argument(help="Classifier: a folder, a hub id, or full or lite, which are shipped.")],
    stores: Stores,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for evaluation.json, .md and .svg.")],
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare a classifier with every baseline on stores that it was not trained on."""
    from ltmia.classifier.membership import chosen_classifier
    from ltmia.lab.evaluate import TABLES_FILE, find_combinations
    from ltmia.lab.evaluate import evaluate as run_evaluate

    classifier = chosen_classifier(model)
    with progress(quiet=quiet) as report:
        run_evaluate(classifier, find_combinations(stores), out, overwrite=overwrite, report=report)
    if not quiet:
        print((out / TABLES_FILE).read_text("utf-8"))
