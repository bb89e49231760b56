"""The commands that put a finished audit where others look for it: `card`."""

from pathlib import Path
from typing import Annotated

import typer

CHANGED = 1


def card(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    into: Annotated[Path, typer.Option("--into", help="Model card to write into: the README.md of the model.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if the card is not what the audit gives.")
    ] = False,
) -> None:
    """Write an audit into a model card: a section, and metrics in its model-index; all else in it stays."""
    from ltmia.integrations.card import drift, write_card

    if not check:
        write_card(folder, into)
        print(into)
        return
    found = drift(folder, into)
    for difference in found:
        print(f"{into}: {difference}; `ltmia card {folder} --into {into}` writes what the audit gives")
    if found:
        raise typer.Exit(CHANGED)
    print(f"{into}: as the audit in {folder} gives it")
