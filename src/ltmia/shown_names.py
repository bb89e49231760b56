"""Shows paths and command lines in files that may be passed on, without the folders of this machine."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

PROGRAM = "ltmia"
"""Name of the command line."""
OPTION_WITH_PATH = re.compile(r"(-[\w-]*=?)(\.{0,2}/.*)", re.S)
"""An option and its value in one argument: a flag, then perhaps `=`, then a path that leads to a folder."""


def shown_path(name: str) -> str:
    """Return a path as results show it: relative to the current folder, or only the last part if it is elsewhere.

    Any other path would reveal details of the machine and its user, and would mean nothing on another machine. Names
    that lead to no other folder, such as hub ids, stay as they are.
    """
    path = Path(name)
    if not path.is_absolute() and ".." not in path.parts:
        return name
    here = Path.cwd()
    path = Path(os.path.normpath(here / path))
    return str(path.relative_to(here)) if path.is_relative_to(here) and path != here else path.name


def flag_of(option: str) -> str:
    """Return the flag of an option of an audit or a score."""
    return f"--{option.replace('_', '-')}"


def shown_command(arguments: Iterable[str]) -> str:
    """Return a command line as a results file shows it: the program by its name, paths as in `shown_path`."""
    program, *rest = arguments
    path = Path(program)
    parts = [(OPTION_WITH_PATH.fullmatch(argument), argument) for argument in rest]
    shown = (match[1] + shown_path(match[2]) if match else shown_path(whole) for match, whole in parts)
    return " ".join([path.parent.name if path.name == "__main__.py" else path.name, *shown])
