"""Reads a recipe file, and reports all mistakes in it at once, each with its line and a cure."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ltmia.errors import ConfigError
from ltmia.lab.recipe import Corpus, Extraction, FolderBase, Grid, HubBase, Listed, Privacy, Recipe, Regime, TinyBase

Place = tuple[str | int, ...]
"""Keys and indices from the root of the file to a value."""

KNOWN_KEYS = sorted(
    {
        key
        for table in (Recipe, Corpus, FolderBase, HubBase, TinyBase, Regime, Privacy, Grid, Listed, Extraction)
        for key in table.model_fields
    }
)


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: If anything is wrong; the message gives file, line, key and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        recipe = Recipe.model_validate(tomllib.loads(text))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe; expected a TOML file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error}); write the recipe again as UTF-8") from error
    except ValidationError as error:
        mistakes = [(_place(details), _message(details)) for details in error.errors()]
        raise ConfigError(_report(path, text, mistakes)) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # besides TOMLDecodeError: huge numbers, impossible dates, deep nesting
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    mistakes = list(_wrong_names(recipe))
    if mistakes:
        raise ConfigError(_report(path, text, mistakes))
    return recipe


def line_of(text: str, place: Place) -> int | None:
    """Return the line (from 1) of a value, or of the nearest table around it; None for the whole file."""
    best, best_depth = None, 0
    for number, found in _keys(text):
        depth = len(found)
        if depth > best_depth and found == place[:depth]:
            best, best_depth = number, depth
    return best


HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]")
ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_\-\"'. ]+?)\s*=")


def _keys(text: str) -> Iterator[tuple[int, Place]]:
    """List the tables and keys of a TOML text with their lines; content of values is skipped."""
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.match(line):
            name = header[2]
            table = _split(name)
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                table = (*table, counts[name])
            yield number, table
        elif assignment := ASSIGNMENT.match(line):
            yield number, table + _split(assignment[1])


def _split(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _place(details: ErrorDetails) -> Place:
    # Tags of the kinds of base are pydantic's, not the file's; so is the mark of a bad key.
    return tuple(part for part in details["loc"] if not (isinstance(part, str) and part[:1] in "<["))


def _message(details: ErrorDetails) -> str:
    if details["type"] == "extra_forbidden":
        name = str(details["loc"][-1])
        near = difflib.get_close_matches(name, KNOWN_KEYS, n=1)
        return "unknown key; " + (f"did you mean {near[0]}?" if near else "remove it")
    if details["type"] == "missing":
        return "is missing; set it"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if details["type"] in ("value_error", "base_kind"):
        return message
    return f"expected {message}, found {str(details['input'])[:60]!r}"


def _wrong_names(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """Find unknown names, and test corpora that a base would be pretrained on."""
    known = {"base": list(recipe.bases), "corpus": list(recipe.corpora), "regime": list(recipe.regimes)}
    for place, kind, name in _names_used(recipe):
        if name not in known[kind]:
            yield place, _unknown(kind, name, known[kind])
    for name, base in recipe.bases.items():
        if isinstance(base, TinyBase):
            yield from _wrong_pretraining(recipe, name, base)


def _names_used(recipe: Recipe) -> Iterator[tuple[Place, str, str]]:
    """List (place, kind, name) of all that grids and combinations refer to."""
    for i, grid in enumerate(recipe.grid):
        for kind, key in (("base", "bases"), ("corpus", "corpora"), ("regime", "regimes")):
            for name in getattr(grid, key):
                yield ("grid", i, key), kind, name
    for i, listed in enumerate(recipe.combinations):
        for kind in ("base", "corpus", "regime"):
            yield ("combinations", i, kind), kind, getattr(listed, kind)


def _wrong_pretraining(recipe: Recipe, name: str, base: TinyBase) -> Iterator[tuple[Place, str]]:
    place: Place = ("bases", name, "corpora")
    chosen = recipe.pretraining_corpora(base)
    if not chosen:
        yield place, 'there is no training corpus to pretrain on; give a corpus role = "train"'
    for corpus in chosen:
        if corpus not in recipe.corpora:
            yield place, _unknown("corpus", corpus, list(recipe.corpora))
        elif recipe.corpora[corpus].role == "test":
            yield place, f"{corpus} is a test corpus, on which no base may be pretrained; leave it out"


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no {kind} {name!r}; {hint}The recipe has {', '.join(known) or 'none'}"


def _report(path: Path, text: str, mistakes: list[tuple[Place, str]]) -> str:
    lines = []
    for place, message in mistakes:
        line = line_of(text, place)
        where = f"{path}, line {line}" if line else str(path)
        key = ".".join(map(str, place))
        lines.append(f"{where}: {key + ': ' if key else ''}{message}")
    return "\n".join(dict.fromkeys(lines))
