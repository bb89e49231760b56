"""The pair of models of an audit: loaded models (`LoadedPair`) or recordings made elsewhere (`RecordedPair`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ltmia.errors import ConfigError
from ltmia.features.columns import DEFAULT_K
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.records import Texts
from ltmia.scoring.extraction import (
    DEFAULT_LENGTH,
    ExtractedBatch,
    ExtractionConfig,
    ExtractionRun,
    encode,
    extract_batches,
)
from ltmia.scoring.identity import PairIdentity
from ltmia.weights.gradients import GradientReader

LEAST_READ = 2
"""Fewest tokens of which one can be scored."""
LEAST_LENGTH = 128
"""Tokens read at least: a folder that says less must not hide the rest of the texts."""


class AuditedPair(Protocol):
    """Interface of a pair for an audit."""

    @property
    def models(self) -> Pair | None:
        """The models themselves; None if only recordings are at hand."""
        ...

    @property
    def sources(self) -> tuple[str, str]:
        """Paths or hub ids of target and reference."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids that both models know."""
        ...

    @property
    def k(self) -> int:
        """Number of top and bottom tokens kept per position."""
        ...

    @property
    def default_length(self) -> int:
        """Tokens of each text that are read unless the user names a number."""
        ...

    def refuse(self, attacks: Sequence[str], version: str | None, *, reveal: bool = False) -> None:
        """Refuse attacks and options for which this pair has too little data.

        Args:
            attacks: Names.
            version: Feature version of the classifier, if one takes part.
            reveal: Whether tokens are to be shown.

        Raises:
            ConfigError: If anything is refused; the message names all of it, and what to do.
        """
        ...

    def identity(self) -> PairIdentity:
        """Hash and describe both models."""
        ...

    def encode(self, texts: Texts, config: ExtractionConfig) -> list[EncodedText]:
        """Return each text's token ids as the models read them, or why it cannot be scored."""
        ...

    def extract(self, texts: Texts, config: ExtractionConfig, run: ExtractionRun) -> Iterator[ExtractedBatch]:
        """Yield statistics and scores of all texts that are not done, batch by batch, unscorable texts first."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """A pair of loaded models, which serves every attack."""

    models: Pair
    gradients: GradientReader | None = None
    """Reads gradients of the texts in the passes of `extract`."""

    @property
    def sources(self) -> tuple[str, str]:
        """Paths or hub ids of target and reference."""
        return self.models.target_origin.source, self.models.reference_origin.source

    @property
    def vocab_size(self) -> int:
        """Number of token ids that both models know."""
        return self.models.vocab_size

    @property
    def k(self) -> int:
        """Number of top and bottom tokens kept per position."""
        return DEFAULT_K

    @property
    def default_length(self) -> int:
        """As many tokens as the target was trained on, if its folder says so, but at least 128; else 512."""
        told = self.models.target_origin.trained_length
        return DEFAULT_LENGTH if told is None else max(told, LEAST_LENGTH)

    def refuse(self, attacks: Sequence[str], version: str | None, *, reveal: bool = False) -> None:
        """Refuse nothing."""

    def identity(self) -> PairIdentity:
        """Hash and describe both models."""
        return PairIdentity.of(self.models)

    def encode(self, texts: Texts, config: ExtractionConfig) -> list[EncodedText]:
        """Tokenise texts."""
        return encode(self.models, texts.texts, config, texts.starts)

    def extract(self, texts: Texts, config: ExtractionConfig, run: ExtractionRun) -> Iterator[ExtractedBatch]:
        """Run both models."""
        return extract_batches(self.models, texts.texts, config, run, gradients=self.gradients)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairToLoad:
    """A pair of models that is loaded later, after the folder for the results has been checked."""

    sources: tuple[str, str]
    """Target and reference as the user named them."""
    load: Callable[[], Pair | AuditedPair]
    checkpoints: Sequence[str] = ()
    """Earlier states of the target as the user named them."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Options of loading that affect numbers, if they were named."""


def length_to_read(pair: AuditedPair, asked: int | None) -> int:
    """Return the number of tokens of each text that are read.

    Args:
        pair: Says the number if nobody else does.
        asked: What the user wants; None if nothing.

    Raises:
        ConfigError: If that leaves nothing to score.
    """
    if asked is None:
        return pair.default_length
    if asked < LEAST_READ:
        raise ConfigError(f"`max_length={asked}`: expected {LEAST_READ} or more, because the first token is not scored")
    return asked


def audited(pair: Pair | AuditedPair | PairToLoad) -> AuditedPair:
    """Return a pair in the form that audits use; load it if it is not loaded yet."""
    given = pair.load() if isinstance(pair, PairToLoad) else pair
    return LoadedPair(given) if isinstance(given, Pair) else given
