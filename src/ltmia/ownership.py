"""Decides whether a folder is ours: a marker file says that ltmia made it, with the kind and settings of its content.

This module only reads. The rule for every output: never delete or overwrite a file that ltmia did not write.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ltmia.errors import ConfigError

LOCK_FILE, HOLDER_FILE, MARKER_FILE = ".lock", ".holder", ".ltmia.json"
PART_ENDING = ".ltmia-part"
"""Ending of the names of unfinished files. A file with it is ours, because no other program uses it."""
SHOWN = 40
"""Largest number of characters of a setting whose value is shown; longer ones, such as hashes, are only named."""


class Marker(BaseModel):
    """The marker file of a folder of ours."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """What the folder holds, in words."""
    settings: dict[str, Any] = {}
    """Everything that the content depends on, JSON values only; empty until there is content."""
    files: tuple[str, ...] = ()
    """Relative names of the files that were written, if the kind does not determine them."""
    sha256: tuple[str, ...] = ()
    """Hashes of their contents, in any order; empty in folders of older versions."""

    @field_validator("settings", mode="before")
    @classmethod
    def _as_json(cls, settings: Any) -> Any:
        """Give settings the types that they are read back with: a tuple is a list then."""
        return json.loads(json.dumps(settings))


def check_folder(out: Path, marker: Marker, *, overwrite: bool = False) -> None:
    """Refuse a folder that `marker` may not be written into; write nothing.

    The folder may be missing, empty, or ours with the same settings. With `overwrite` the settings may differ.

    Raises:
        ConfigError: If the folder holds something else, or a file of ours that was changed since; the message names it.
    """
    if not (strangers := content_of(out)):
        return
    found = read_marker(out)
    if found is None:
        raise ConfigError(
            f"{out}: holds {strangers[0]!r}, and no {MARKER_FILE} says that ltmia made this folder. Nothing was "
            "changed. Choose a new or an empty folder."
        )
    if found.kind != marker.kind:
        raise ConfigError(f"{out}: holds {found.kind}, not {marker.kind}. Nothing was changed. Choose another folder.")
    if found.settings and not overwrite and (other := differing(found.settings, marker.settings)):
        raise ConfigError(
            f"{out}: holds {found.kind} with other settings: {', '.join(other)}. Nothing was changed. Choose another "
            "folder, or replace what is there with `overwrite=True`."
        )
    refuse_changed(out, found)


def refuse_changed(out: Path, found: Marker | None) -> None:
    """Refuse to replace files of ours that somebody changed, such as a model card with more text.

    Args:
        out: The folder.
        found: Its marker.

    Raises:
        ConfigError: If one was changed; the message names it.
    """
    if found is None or not found.sha256:
        return
    for name in found.files:
        path = out / name
        if path.is_symlink() or (path.is_file() and hashes_of_files(out, [name])[0] not in found.sha256):
            raise ConfigError(
                f"{path}: was changed since ltmia wrote it. Nothing was changed now. Move it, or choose another folder."
            )


def hashes_of_files(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return the SHA-256 of each file, sorted."""
    hashes = []
    for name in names:
        with (folder / name).open("rb") as file:
            hashes.append(file_digest(file, "sha256").hexdigest())
    return tuple(sorted(hashes))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ, with their values if these are short."""
    names = [name for name in {**new, **old} if old.get(name, ...) != new.get(name, ...)]
    return [_difference(name, *(_shown(some, name) for some in (old, new))) for name in names]


def _difference(name: str, old: str, new: str) -> str:
    return name if max(len(old), len(new)) > SHOWN else f"{name} ({old} there, {new} now)"


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "none"


def refuse_inputs(out: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that is one of the inputs or lies inside one, even under another name or through a link.

    Args:
        out: The file or folder to be written.
        inputs: Files and folders that are read; hub ids and empty names are skipped.

    Raises:
        ConfigError: If it is; the message names the input.
    """
    real = Path(os.path.realpath(out))
    for source in filter(str, inputs):  # an empty name, as of a model in memory, would be the current folder
        with suppress(OSError, ValueError):  # a name that no file can have
            if any(place.exists() and place.samefile(source) for place in (real, *real.parents)):
                raise ConfigError(
                    f"{out}: is, or lies inside, {source}, which is read here. Nothing was changed. Choose another "
                    "place for the output."
                )


def refuse_stranger(file: Path, sign: str) -> None:
    """Refuse to replace a file that is not ours.

    Args:
        file: To be written.
        sign: Text that every file of this kind contains if we wrote it.

    Raises:
        ConfigError: If there is a file without it.
    """
    if os.path.lexists(file) and not (file.is_file() and sign.encode() in file.read_bytes()):
        raise ConfigError(
            f"{file}: ltmia did not write this, or it is damaged. Nothing was changed. Move it, or choose another name."
        )


def read_marker(folder: Path) -> Marker | None:
    """Return the marker of a folder; None if we did not write one."""
    try:
        return Marker.model_validate_json((folder / MARKER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def is_note(path: Path) -> bool:
    """Say whether a file is a note that `folders` writes: the marker, the lock, or who holds it."""
    name = path.name.removesuffix(PART_ENDING)
    if name not in (LOCK_FILE, HOLDER_FILE, MARKER_FILE) or path.is_symlink() or not path.is_file():
        return False
    if name == MARKER_FILE:
        return path.name != name or read_marker(path.parent) is not None
    content = path.read_bytes()
    return not content or (name == HOLDER_FILE and content.isdigit())


def content_of(out: Path) -> list[str]:
    """Return the sorted names in a folder without our own notes; empty if it is missing.

    Raises:
        ConfigError: If it is not a folder, or cannot be read.
    """
    try:
        return sorted(path.name for path in out.iterdir() if not is_note(path))
    except FileNotFoundError as error:
        if not out.is_symlink():
            return []
        raise ConfigError(f"{out}: a link that leads nowhere; expected a folder") from error
    except OSError as error:
        raise ConfigError(f"{out}: not to be used as a folder ({error.strerror}); choose another") from error
