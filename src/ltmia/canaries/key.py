"""The key of a folder of canaries: which of them were put into the training file, and how often."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ltmia.errors import ConfigError, DataError
from ltmia.ownership import Marker, hashes_of_files, read_marker
from ltmia.records import Texts

KIND = "canaries"
"""Kind in the folder's marker."""
FileState = Literal["as written", "recounted", "missing"]
KEY_FILE = "private/key.jsonl"
ABOUT = "ltmia_canary"
"""Column of the key with what `_About` holds; the other columns hold the canary as a row of the user's data."""

Reader = Callable[..., Texts]
"""Reads texts as `read_texts` does."""


MOST_COPIES = 10_000
"""Largest number of copies of a canary."""
Copies = Annotated[int, Field(ge=1, le=MOST_COPIES)]


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    inserted: bool
    repeats: Copies


class _Settings(BaseModel):
    """The settings in the folder's marker that an audit reads; whoever passes a folder on can change them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    training_file: str = Field(pattern=r"^[^/\\\x00]+$")
    """Name of a file in the folder itself."""
    text_column: str
    repeats: list[Copies] = Field(min_length=1)
    temperature: FiniteFloat
    n_tokens: int = Field(ge=1)
    seed: int = Field(ge=0)


class _KeyLine(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    ltmia_canary: _About


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryKey:
    """Canaries, and what the toss of a coin decided for each."""

    texts: Texts
    inserted: tuple[bool, ...]
    """Whether it was put into the training file."""
    repeats: tuple[int, ...]
    """Number of times that it was put there, or would have been."""
    settings: Mapping[str, Any]
    """Settings that the folder was made with."""
    training_file: FileState
    """Whether the training file is as it was written, changed but with the same canaries, or no longer in the
    folder."""

    @property
    def order(self) -> list[int]:
        """Rows of the inserted canaries, then of those left out."""
        return sorted(range(len(self.texts)), key=lambda row: not self.inserted[row])

    @property
    def members(self) -> Texts:
        """The canaries that were inserted."""
        return self.texts.take([row for row, there in enumerate(self.inserted) if there])

    @property
    def nonmembers(self) -> Texts:
        """The canaries that were left out."""
        return self.texts.take([row for row, there in enumerate(self.inserted) if not there])


def key_lines(columns: Sequence[Mapping[str, Any]], inserted: Sequence[bool], repeats: Sequence[int]) -> str:
    """Return the content of a key.

    Args:
        columns: Columns that hold each canary's text, see `rows.columns_of`.
        inserted: Whether it was put into the training file.
        repeats: How often it was put there, or would have been.
    """
    width = len(str(len(columns)))
    lines = [
        {"id": f"canary-{number:0{width}}", **own, ABOUT: {"inserted": bool(there), "repeats": int(times)}}
        for number, (own, there, times) in enumerate(zip(columns, inserted, repeats, strict=True), start=1)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_key(folder: Path, read: Reader) -> CanaryKey:
    """Read the key of a folder of canaries, and check that the training file there still agrees with it.

    Args:
        folder: Written by `make_canaries`.
        read: Reads key and training file.

    Raises:
        ConfigError: If it is no such folder, the key was changed, or the training file holds other canaries.
        DataError: If a file cannot be read.
    """
    marker = read_marker(folder)
    if marker is None or marker.kind != KIND:
        raise ConfigError(f"{folder}: expected a folder written by `ltmia canaries make`")
    path = folder / KEY_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: missing; without the key nobody knows which canaries were inserted")
    if path.is_symlink() or hashes_of_files(folder, [KEY_FILE])[0] not in marker.sha256:
        raise ConfigError(f"{path}: is not the key that was written here; put that one back")
    try:
        _Settings.model_validate(marker.settings)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(
            f"{folder}: its marker was changed; {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}. Make canaries again"
        ) from None
    key = key_in(folder, marker.settings, read, _state_of_training_file(folder, marker))
    if key.training_file == "recounted" and (wrong_ones := miscounted(folder, key, read)):
        raise ConfigError(
            f"{folder / marker.settings['training_file']}: was changed, and {len(wrong_ones)} of {len(key.texts)} "
            f"canaries, such as {wrong_ones[0]}, are no longer there as often as the key says. If the model was "
            "trained on the file as it was written, put that file back; else make canaries again, after all filters "
            "and removal of repeats, and train on those."
        )
    return key


def key_in(folder: Path, settings: Mapping[str, Any], read: Reader, state: FileState) -> CanaryKey:
    """Read the key in a folder, whatever its marker says.

    Args:
        folder: Holds the key.
        settings: Settings that the folder was made with.
        read: Reads the key.
        state: What is known of the training file.

    Raises:
        DataError: If it is not a key, or does not fit the settings.
    """
    path = folder / KEY_FILE
    texts = read(str(path), text_column=settings["text_column"])
    try:
        about = [_KeyLine.model_validate_json(line).ltmia_canary for line in path.read_text("utf-8").split("\n")[:-1]]
    except ValidationError as error:
        raise DataError(f"{path}: not a key of canaries: {error.errors()[0]['msg']}") from None
    if len(about) != len(texts) or not {line.repeats for line in about} <= set(settings["repeats"]):
        raise DataError(f"{path}: not a key of canaries: its rows do not fit the settings of the folder")
    return CanaryKey(
        texts=texts,
        inserted=tuple(line.inserted for line in about),
        repeats=tuple(line.repeats for line in about),
        settings=settings,
        training_file=state,
    )


def sha256_of_key(folder: Path) -> str:
    """Return the hash of a folder's key."""
    with (folder / KEY_FILE).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _state_of_training_file(folder: Path, marker: Marker) -> FileState:
    name = marker.settings["training_file"]
    if not (folder / name).is_file():
        return "missing"
    return "as written" if hashes_of_files(folder, [name])[0] in marker.sha256 else "recounted"


def miscounted(folder: Path, key: CanaryKey, read: Reader) -> list[str]:
    """Return the ids of canaries that the training file in a folder does not hold as often as the key says."""
    path = folder / key.settings["training_file"]
    there = Counter(read(str(path), text_column=key.settings["text_column"]).texts)
    rows = zip(key.texts.ids, key.texts.texts, key.inserted, key.repeats, strict=True)
    return [name for name, text, inserted, repeats in rows if there[text] != (repeats if inserted else 0)]
