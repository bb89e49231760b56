"""The recipe of a lab in TOML: corpora, bases, regimes, and combinations of them. It reads no corpus and no model."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ltmia.attacks.selection import fast_attacks, select_attacks
from ltmia.errors import ConfigError
from ltmia.finetuning.config import FinetuneConfig, Keep, Schedule
from ltmia.finetuning.pretraining import PretrainConfig
from ltmia.finetuning.privacy import DpConfig
from ltmia.finetuning.tiny import TinyConfig

EMBEDDED = "embedded"
"""Path that names the texts, or the base, of this package."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
"""Name that is part of folder names, so without dots, slashes and spaces."""
Names = Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Role = Literal["train", "test"]


def _as_value_error(build: Any) -> None:
    """Turn an impossible setting into an error that pydantic reports with its place."""
    try:
        build()
    except ConfigError as error:
        raise ValueError(str(error)) from error


class Table(BaseModel):
    """A table of the recipe: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Corpus(Table):
    """Source of one corpus, and its role."""

    role: Role = "train"
    """Whether bases are pretrained on this corpus (documents 0-5), or it is kept for testing."""
    path: str | None = None
    """File, or "hf:NAME[SPLIT]", or "embedded"; default NAME.jsonl.gz in the corpora's folder."""
    text_column: str = "text"
    group_column: str = "source"
    """Column of each text's document; documents are never divided. Empty: each text is its own document."""
    documents: str = "*"
    """Pattern (shell style) of the documents that belong to this corpus."""


class FolderBase(Table):
    """A base on this machine."""

    path: str
    """Model folder, .gguf file, or "embedded"."""


class HubBase(Table):
    """A base from the hub."""

    hub: str
    """"org/name" or "org/name@revision"."""


class TinyBase(Table):
    """A base that the lab pretrains, with its own tokenizer."""

    model_type: str
    vocab_size: int
    hidden_size: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_tokens: int
    """Training tokens."""
    learning_rate: float = 2e-3
    batch_size: int = 32
    """Blocks of `seq_len` tokens per step."""
    seq_len: int = 128
    max_texts: Count = 40_000
    """Largest number of texts drawn to train on."""
    corpora: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Corpora to pretrain on; all training corpora when empty."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _as_value_error(lambda: (self.shape(self.vocab_size), self.pretraining()))
        return self

    def shape(self, vocab_size: int) -> TinyConfig:
        """Return the model's shape with the size of its trained tokenizer."""
        return TinyConfig(
            model_type=self.model_type,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
        )

    def pretraining(self) -> PretrainConfig:
        """Return the settings of its pretraining."""
        return PretrainConfig(
            n_tokens=self.n_tokens,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            seed=self.seed,
        )


class Privacy(Table):
    """Differential privacy of a fine-tuning."""

    epsilon: float
    delta: float
    max_grad_norm: float = 1.0


class Regime(Table):
    """Settings of fine-tuning, and the numbers of texts."""

    learning_rate: float
    epochs: int
    n_members: Count
    n_nonmembers: Count
    n_validation: Annotated[int, Field(ge=0)] = 0
    """Number of validation texts, which are neither members nor non-members."""
    batch_size: int = 16
    max_length: int = 128
    """Largest number of tokens of a text for training and scoring."""
    lora: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    keep: Keep = "last"
    dp: Privacy | None = None
    """DP-SGD within this budget; needs the extra `dp`."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _as_value_error(lambda: self.finetuning(0))
        if self.keep == "best" and not self.n_validation:
            raise ValueError('keep = "best" needs validation texts to choose by: set n_validation')
        return self

    def finetuning(self, seed: int) -> FinetuneConfig:
        """Return the settings of the fine-tuning itself."""
        others = {"n_members", "n_nonmembers", "n_validation", "dp"}
        dp = None if self.dp is None else DpConfig(**self.dp.model_dump())
        return FinetuneConfig(**self.model_dump(exclude=others), dp=dp, seed=seed)


class Grid(Table):
    """Combinations of every base with every corpus."""

    bases: Names
    corpora: Names
    regimes: Names
    regimes_each: Count | None = None
    """Number of regimes for each base and corpus, taken in turn so that all are used equally often; default: all."""
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    """Seeds; each gives a combination with other members and another order."""


class Listed(Table):
    """One combination."""

    base: Name
    corpus: Name
    regime: Name
    seed: Seed = 0

    @property
    def name(self) -> str:
        """Name of the store."""
        return f"{self.base}.{self.corpus}.{self.regime}" + (f".s{self.seed}" if self.seed else "")


class Extraction(Table):
    """Settings of the extraction."""

    attacks: str = "fast"
    """Attacks whose scores are kept: "fast" or names separated by commas."""
    k: Count = 20
    """Number of top and bottom tokens kept per position."""
    batch_size: Count = 16

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _as_value_error(lambda: select_attacks(self.attacks))
        return self

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the attacks that the shared pass computes."""
        return fast_attacks(select_attacks(self.attacks))


def _base_kind(base: Any) -> str | None:
    keys = base if isinstance(base, dict) else {}
    return next((f"<{key}>" for key in ("path", "hub", "model_type") if key in keys), None)


Base = Annotated[
    Annotated[FolderBase, Tag("<path>")] | Annotated[HubBase, Tag("<hub>")] | Annotated[TinyBase, Tag("<model_type>")],
    Discriminator(
        _base_kind,
        custom_error_type="base_kind",
        custom_error_message="a base needs one of path (a folder), hub (a hub id) or model_type (pretrained here)",
    ),
]


class Recipe(Table):
    """Content of a recipe file."""

    corpora: dict[Name, Corpus]
    bases: dict[Name, Base]
    regimes: dict[Name, Regime] = {}
    grid: Annotated[tuple[Grid, ...], Field(strict=False)] = ()
    combinations: Annotated[tuple[Listed, ...], Field(strict=False)] = ()
    extraction: Extraction = Extraction()
    device: str = "cpu"
    """Device of the models: cpu, cuda, mps or auto."""
    keep_models: bool = False
    """Keep the fine-tuned models; otherwise each is deleted when its store is finished."""

    def all_combinations(self) -> tuple[Listed, ...]:
        """Return the combinations of the grids and of the list, each once."""
        expanded = [combination for grid in self.grid for combination in _expand(grid)]
        return tuple({c.name: c for c in [*expanded, *self.combinations]}.values())

    def pretraining_corpora(self, base: TinyBase) -> tuple[str, ...]:
        """Return the names of the corpora that a base is pretrained on."""
        return base.corpora or tuple(name for name, corpus in self.corpora.items() if corpus.role == "train")


def _expand(grid: Grid) -> Iterator[Listed]:
    each = min(grid.regimes_each or len(grid.regimes), len(grid.regimes))
    for seed, (b, base), (c, corpus) in product(grid.seeds, enumerate(grid.bases), enumerate(grid.corpora)):
        for turn in range(each):
            # The step of 2 from base to base lets a corpus meet other regimes on the next base.
            regime = grid.regimes[(2 * b + c + turn * (len(grid.regimes) // each)) % len(grid.regimes)]
            yield Listed(base=base, corpus=corpus, regime=regime, seed=seed)
