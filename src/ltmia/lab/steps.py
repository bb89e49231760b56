"""The steps of a lab, and their keys, which are hashes of everything a step depends on.

A key covers a step's settings and the content that it reads, but no names, paths or times.
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
"""Prefix of the path of a corpus on the hub."""

VERSIONS: Mapping[Kind, int] = {"tokenizer": 1, "pretrain": 1, "finetune": 1, "extract": 3}
"""Version of each step's product; increased when its code changes the product, so that it is made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSource:
    """A corpus that was found."""

    name: str
    role: Role
    path: str
    sha256: str
    """Hash of the file; for a corpus from the hub, hash of its name."""
    text_column: str
    group_column: str
    documents: str

    @property
    def is_here(self) -> bool:
        """Whether the corpus is a local file, so that reading it downloads nothing."""
        return not self.path.startswith(HUB)

    @property
    def content(self) -> dict[str, str]:
        """Everything that determines the texts of the corpus."""
        return {
            "sha256": self.sha256,
            "role": self.role,
            "columns": f"{self.text_column} {self.group_column}",
            "documents": self.documents,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSource:
    """A base for fine-tuning."""

    name: str
    path: str
    """Folder or hub id; an earlier step may still have to make the folder."""
    key: str
    """Hash of its files, of its hub id, or the key of the step that makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerWork:
    """Settings of the step that trains a tokenizer."""

    corpora: tuple[CorpusSource, ...]
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainWork:
    """Settings of the step that pretrains a base."""

    base: TinyBase
    tokenizer: Path
    corpora: tuple[CorpusSource, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationWork:
    """Settings that fine-tuning and extraction of one combination share."""

    combination: Listed
    base: BaseSource
    corpus: CorpusSource
    regime: Regime
    draw_seed: int
    """Seed of membership and fine-tuning."""
    target: Path
    """Folder of the fine-tuned model."""
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractWork:
    """Settings of the step that makes a store."""

    of: CombinationWork
    extraction: Extraction


Work = TokenizerWork | PretrainWork | CombinationWork | ExtractWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step: one product to make."""

    kind: Kind
    name: str
    """Name for people."""
    key: str
    needs: tuple[str, ...]
    """Keys of the steps whose products it reads."""
    product: Path
    """Folder of its product."""
    work: Work
    passing: bool = False
    """Whether its product is deleted once the steps that need it are done."""

    @property
    def label(self) -> str:
        """Kind and name, for people."""
        return f"{self.kind} {self.name}"


def step_key(kind: Kind, content: Mapping[str, Any]) -> str:
    """Return the key of a step: 64 hex digits."""
    text = json.dumps([kind, VERSIONS[kind], content], sort_keys=True)
    return sha256(text.encode()).hexdigest()
