"""Sizes that a model's config gives, without its weights."""

from dataclasses import dataclass
from typing import Any

from ltmia.errors import ModelError
from ltmia.models.checkpoints import read_config
from ltmia.models.loading import LoadOptions
from ltmia.models.pair import length_limits
from ltmia.models.sources import adapter_stack, find_source


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of one model."""

    vocab_size: int
    """Width of the logits."""
    max_positions: int | None
    """Longest input, in tokens; None if the config gives none."""


def model_sizes(source: str, options: LoadOptions) -> ModelSizes:
    """Read the sizes of a model from its config; of an adapter, from its base's.

    Raises:
        ModelError: If there is no config, or it names no vocabulary.
    """
    found = adapter_stack(find_source(source), allow_hub=options.allow_hub)[-1]
    config: Any = read_config(found, trust_remote_code=options.trust_remote_code)
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise ModelError(f"{found.given}: its config.json gives no vocab_size; put the served model's config there")
    return ModelSizes(vocab_size=vocab_size, max_positions=min(length_limits(config), default=None))
