"""Numbers in the configs of models, and configs whose numbers are impossible."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ltmia.errors import ModelError
from ltmia.models.sources import ModelSource

MOST_LAYERS = 10_000
"""A config with more layers is taken for damaged: building the model would not end."""
LAYERS = re.compile(r"(?:layers?|depth)$")
"""Ends of the names of numbers of layers, of a whole model or of a part such as an encoder of images."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Names in configs of the number of experts of a layer."""
ACTIVE_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)
"""Names in configs of the number of experts that a token uses."""


def check_config(source: ModelSource, config: Any) -> None:
    """Refuse a config of which no model can be built, or none that could be loaded as a causal LM.

    Raises:
        ModelError: If it is one; the message names the key.
    """
    text = config.get_text_config()
    n_layers = getattr(text, "num_hidden_layers", 1)
    if not isinstance(n_layers, int) or n_layers < 1:
        raise ModelError(f"{source.given}: num_hidden_layers = {n_layers}: expected 1 to {MOST_LAYERS:,}")
    for name, number in _numbers_of_layers(config.to_dict()):
        if number > MOST_LAYERS:
            raise ModelError(f"{source.given}: {name} = {number}: expected 1 to {MOST_LAYERS:,}")
    n_experts, active = number_in(text, EXPERTS), number_in(text, ACTIVE_EXPERTS)
    # One expert is a plain layer, whatever else the config says.
    if n_experts is not None and active is not None and active > n_experts > 1:
        raise ModelError(f"{source.given}: its config.json says that a token uses {active} experts, of {n_experts}")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source.given}: {config.model_type} is an encoder with a decoder: not a causal LM")


def _numbers_of_layers(config: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of layers in a config and its parts."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", number) for inner, number in _numbers_of_layers(value))
        elif isinstance(value, int) and LAYERS.search(str(name)):
            yield str(name), value


def number_in(config: Any, names: tuple[str, ...]) -> int | None:
    """Return the first number above 0 that a config has under one of some names; None if there is none."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
