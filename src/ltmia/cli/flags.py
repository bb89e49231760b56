"""Replaces names of options in messages, which are in backquotes as in Python, by flags of the command line."""

import re
import warnings
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer._click.core import Command

OPTION = re.compile(r"`(\w+)(?:=([^`]*))?`")
"""Pattern of an option in a message, such as `base` or `dtype="float32"`."""
QUOTES = "'\""


def running_program() -> "Command":
    """Return the program whose command is running."""
    from typer._click.globals import get_current_context  # typer brings its own click

    return get_current_context().find_root().command


def is_on_command_line(name: str) -> bool:
    """Say whether a parameter was given on the command line, and not in a file or the environment."""
    from typer._click.core import ParameterSource
    from typer._click.globals import get_current_context

    return get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def in_flags(message: str, program: "Command") -> str:
    """Replace each option that a message names by its flag in the program.

    `base` becomes --base, `overwrite=True` becomes --overwrite, and `dtype="float32"` becomes --dtype float32. Other
    text in backquotes stays as it is.
    """
    return OPTION.sub(partial(_flag, flags(program)), message)


def warn_in_flags() -> None:
    """Show each warning as one line with flags, without the line of code that raised it."""
    program = running_program()
    warnings.formatwarning = lambda message, *_args, **_more: f"ltmia: warning: {in_flags(str(message), program)}\n"


@cache
def flags(program: "Command") -> dict[str, str]:
    """Return the flag of each option of a program and its subcommands, by the name that the option has in Python."""
    found: dict[str, str] = {}
    waiting = [program]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {
            param.name: param.opts[0] for param in command.params if param.name and param.opts[0].startswith("--")
        }
    return found


def _flag(known: Mapping[str, str], option: re.Match[str]) -> str:
    name, value = option.groups()
    flag = known.get(name)
    if flag is None:
        return option.group()
    return flag if value in (None, "True") else f"{flag} {value.strip(QUOTES)}"
