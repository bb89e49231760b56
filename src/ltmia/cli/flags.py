"""Messages name options as Python does, in backquotes; the command line shows its own flags in their place."""

import re
import warnings
from functools import cache

OPTION = re.compile(r"`(\w+)(?:=([^`]*))?`")
"""`base`, or `dtype="float32"`."""
QUOTES = "'\""


def in_flags(message: str) -> str:
    """Replace each option that a message names by its flag.

    `base` becomes --base, `overwrite=True` becomes --overwrite, and `dtype="float32"` becomes --dtype float32. Other
    text in backquotes stays as it is.
    """
    return OPTION.sub(_flag, message)


def warn_in_flags() -> None:
    """Show each warning as one line of text with flags in it, without the line of code that it comes from."""
    warnings.formatwarning = lambda message, *_args, **_more: f"ltmia: warning: {in_flags(str(message))}\n"


@cache
def flags() -> dict[str, str]:
    """Return the flag of each option, by the name that the option has in Python, over all commands."""
    from typer.main import get_command

    from ltmia.cli.app import app

    found: dict[str, str] = {}
    waiting = [get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {
            param.name: param.opts[0] for param in command.params if param.name and param.opts[0].startswith("--")
        }
    return found


def _flag(option: re.Match[str]) -> str:
    name, value = option.groups()
    flag = flags().get(name)
    if flag is None:
        return option.group()
    return flag if value in (None, "True") else f"{flag} {value.strip(QUOTES)}"
