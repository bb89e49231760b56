"""The commands that publish a finished audit: `card`, `annex`, `verify`."""

from pathlib import Path
from typing import Annotated

import typer

CHANGED = 1


def card(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    into: Annotated[Path, typer.Option("--into", help="Model card to write into, usually README.md of the model.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if the card differs from the audit.")
    ] = False,
) -> None:
    """Add an audit to a model card: a section, and metrics in its model-index; the rest is unchanged."""
    from ltmia.integrations.card import drift, write_card

    if not check:
        write_card(folder, into)
        print(into)
        return
    found = drift(folder, into)
    for difference in found:
        print(f"{into}: {difference}; `ltmia card {folder} --into {into}` writes the current audit")
    if found:
        raise typer.Exit(CHANGED)
    print(f"{into}: agrees with the audit in {folder}")


def annex(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; ends in .md, .html or .pdf (extra: pdf).")],
    context: Annotated[
        Path | None,
        typer.Option("--context", help="TOML file that says how the model is released (docs/integrations.md)."),
    ] = None,
) -> None:
    """Write a privacy annex: what was tested, what was not, and what would change the conclusion."""
    from ltmia.integrations.annex import read_context, write_annex

    write_annex(folder, out, read_context(context) if context else None)
    print(out)


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    against: Annotated[
        Path | None, typer.Option("--annex", help="Annex (.md or .html) to check; exit code 1 if its hashes differ.")
    ] = None,
) -> None:
    """Print the hashes of an audit's files, or compare them with those in an annex."""
    from ltmia.integrations.evidence import differing_files, evidence_of

    for name, digest in evidence_of(folder).items():
        print(f"{digest}  {name}")
    if against is None:
        return
    if found := differing_files(folder, against):
        print(f"{against}: has other hashes for {', '.join(found)}")
        raise typer.Exit(CHANGED)
    print(f"{against}: agrees with these files")
