"""Groups of options: a command shows each option of a group and gets the group."""

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from ltmia.cli.option_groups import with_option_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option("--width", min=1)] = 2
    deep: Annotated[bool, typer.Option("--deep")] = False


app = typer.Typer()


@app.command()
@with_option_groups
def draw(
    *, name: Annotated[str, typer.Argument()], size: Size, colour: Annotated[str, typer.Option("--colour")] = "red"
) -> None:
    typer.echo(f"{name} {size} {colour}")


def ran(*words: str) -> str:
    return CliRunner().invoke(app, list(words)).output.strip()


def test_a_group_is_put_together_from_its_options() -> None:
    assert ran("box") == "box Size(width=2, deep=False) red"
    assert ran("--deep", "box", "--colour", "blue", "--width", "7") == "box Size(width=7, deep=True) blue"


def test_options_of_a_group_are_checked_and_stand_in_its_place() -> None:
    assert "--width" in ran("box", "--width", "0")
    shown = ran("--help")
    assert shown.index("--width") < shown.index("--deep") < shown.index("--colour")
    assert "--size" not in shown
