"""Reads options from environment variables and from a file of the project.

`LTMIA_FDR=0.01` sets `--fdr` of every command that has it. So does `fdr = 0.01` in `ltmia.toml`, or in the table
`[tool.ltmia]` of `pyproject.toml`, of the folder where the command runs; a table `[audit]` in `ltmia.toml`, or
`[tool.ltmia.audit]`, is for that command only. The command line has priority over the environment, and the environment
over the file.
"""

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer._click.core import Command, Context  # typer brings its own click along
from typer._click.formatting import HelpFormatter
from typer.core import TyperGroup, TyperOption

from ltmia.errors import ConfigError

PREFIX = "LTMIA"
OWN_FILE, PROJECT_FILE = Path("ltmia.toml"), Path("pyproject.toml")
ON_THE_COMMAND_LINE = ("trust-remote-code", "allow-hub", "overwrite", "reveal", "summary", "endpoint")
"""Options that a file may not set, because a folder from a stranger could otherwise run code, delete files, append to
any file, or have the audited texts written into the report or sent to a server."""


class Commands(TyperGroup):
    """Command group whose options can also be set by environment variables and a file of the project."""

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """List the commands under the heading of their panel, with the first sentence of their help."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name, (command.help or "").split("\n\n")[0])
            )
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command whose options can also come from the environment and a file."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and not ctx.resilient_parsing:
            place, said = read_settings()
            check_settings(place, said, _options_by_command(ctx.find_root().command))
            _name_variables(command)
            command.context_settings["default_map"] = _defaults(command, cmd_name, said)
        return command


def read_settings() -> tuple[str, dict[str, Any]]:
    """Return the place and the content of the settings; both are empty if there is no settings file.

    Raises:
        ConfigError: If the file is not TOML.
    """
    for file, tables in ((OWN_FILE, ()), (PROJECT_FILE, ("tool", "ltmia"))):
        if not file.is_file():
            continue
        try:
            said = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: not readable as TOML: {error}") from error
        for table in tables:
            said = said.get(table, {})
        if not isinstance(said, dict):
            raise ConfigError(f"{file}: tool.ltmia: expected a table")
        if said:
            return f"{file}{': tool.ltmia' if tables else ''}", said
    return "", {}


def check_settings(place: str, said: Mapping[str, Any], options: Mapping[str, set[str]]) -> None:
    """Refuse keys that no command reads.

    Args:
        place: Place of the settings, for messages.
        said: Content of the file.
        options: Names of the options of each command.

    Raises:
        ConfigError: If there is such a key; the message names it and the nearest option.
    """
    everywhere = set().union(*options.values())
    for key, value in said.items():
        known = everywhere if not isinstance(value, dict) else set(options)
        _check_key(place, key, known)
        for inner in value if isinstance(value, dict) else ():
            _check_key(f"{place}: {key}", inner, options[key])


def _check_key(place: str, key: str, known: set[str]) -> None:
    name = key.replace("_", "-")
    if name in ON_THE_COMMAND_LINE:
        raise ConfigError(f"{place}: {key}: give --{name} on the command line; a file may not set it")
    if name not in known:
        near = get_close_matches(name, sorted(known), 1, 0.0)
        raise ConfigError(f"{place}: {key}: no such option; the nearest is {near[0] if near else 'none'}")


def _options_by_command(root: Command) -> dict[str, set[str]]:
    """Return the names of the options of each command; commands of one name, such as two `audit`, share theirs."""
    found: dict[str, set[str]] = {}
    for name, options in _options(root):
        found.setdefault(name, set()).update(options)
    return found


def _options(command: Command, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each command, and the names of its options."""
    if isinstance(command, TyperGroup):
        for inner, found in command.commands.items():
            yield from _options(found, inner)
    else:
        yield name, {flag for flag, _ in _flags(command)}


def _name_variables(command: Command) -> None:
    """Read each option from the variable named like its flag; click would use the name of the function's argument."""
    variables = {param: f"{PREFIX}_{flag.upper().replace('-', '_')}" for flag, param in _flags(command)}
    for param in command.params:
        if isinstance(param, TyperOption) and not param.is_eager and param.name in variables:
            param.envvar, param.show_envvar = variables[param.name], False


def _flags(command: Command) -> Iterator[tuple[str, str]]:
    """Return each option's flag without dashes, and the name of its function argument."""
    for param in command.params:
        for flag in param.opts if isinstance(param, TyperOption) else ():
            if flag.startswith("--") and param.name is not None:
                yield flag.removeprefix("--"), param.name


def _defaults(command: Command, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    own = said.get(name, {})
    given = {key.replace("_", "-"): value for key, value in said.items() if not isinstance(value, dict)}
    given |= {key.replace("_", "-"): value for key, value in own.items()} if isinstance(own, dict) else {}
    return {param: given[flag] for flag, param in _flags(command) if flag in given}
