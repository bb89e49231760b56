"""The steps a lab is made of, and the keys that say what each of them depends on.

A key is the hash of a step's own settings and of the content it starts from: never of names, paths or times.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ltmia.lab.recipe import Extraction, Listed, Regime, Role, TinyBase

Kind = Literal["tokenizer", "pretrain", "finetune", "extract"]

HUB = "hf:"
"""What the path of a corpus from the hub starts with."""

VERSIONS: Mapping[Kind, int] = {"tokenizer": 1, "pretrain": 1, "finetune": 1, "extract": 3}
"""Raised when a step's code changes what it makes: then it is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSource:
    """A corpus where it was found."""

    name: str
    role: Role
    path: str
    sha256: str
    """Of the file; of the name for a corpus from the hub."""
    text_column: str
    group_column: str
    documents: str

    @property
    def is_here(self) -> bool:
        """It is a file, so that reading it fetches nothing."""
        return not self.path.startswith(HUB)

    @property
    def content(self) -> dict[str, str]:
        """What decides its texts."""
        return {
            "sha256": self.sha256,
            "role": self.role,
            "columns": f"{self.text_column} {self.group_column}",
            "documents": self.documents,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSource:
    """A base as a fine-tuning finds it."""

    name: str
    path: str
    """Folder or hub id; the folder may be one that an earlier step is still to make."""
    key: str
    """Hash of its files, of its hub id, or the key of the step that makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerWork:
    """A tokenizer for bases pretrained here."""

    corpora: tuple[CorpusSource, ...]
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainWork:
    """A base pretrained here."""

    base: TinyBase
    tokenizer: Path
    corpora: tuple[CorpusSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationWork:
    """What fine-tuning and extraction of one combination share."""

    combination: Listed
    base: BaseSource
    corpus: CorpusSource
    regime: Regime
    draw_seed: int
    """Of membership and fine-tuning."""
    target: Path
    """Folder of the fine-tuned model."""
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractWork:
    """A store."""

    of: CombinationWork
    extraction: Extraction


Work = TokenizerWork | PretrainWork | CombinationWork | ExtractWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to make."""

    kind: Kind
    name: str
    """What people call it."""
    key: str
    needs: tuple[str, ...]
    """Keys of the steps whose products it reads."""
    product: Path
    """Folder it leaves."""
    work: Work
    passing: bool = False
    """Its product is only needed by others, and goes once they are done."""

    @property
    def label(self) -> str:
        """Kind and name, for people."""
        return f"{self.kind} {self.name}"


def step_key(kind: Kind, content: Mapping[str, Any]) -> str:
    """Return the key of a step: 64 hex digits."""
    text = json.dumps([kind, VERSIONS[kind], content], sort_keys=True)
    return sha256(text.encode()).hexdigest()
