"""Sizes that a model's config gives, without its weights.

The model is built on torch's "meta" device, where tensors have a shape but no numbers, so this works for every
architecture and takes no memory.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from ltmia.errors import ModelError
from ltmia.models.adapters import changes_base
from ltmia.models.checkpoints import check_unpackable, dtype_in, read_config_alone
from ltmia.models.config_numbers import ACTIVE_EXPERTS, EXPERTS, check_config, number_in
from ltmia.models.loading import LoadOptions
from ltmia.models.pair import length_limits
from ltmia.models.sources import ADAPTER_CONFIG, ModelSource, adapter_stack, base_source, find_source, refuse_clearly
from ltmia.models.weight_delta import LAYER


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
    config: Any = read_config_alone(found, trust_remote_code=options.trust_remote_code)
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise ModelError(f"{found.given}: its config.json gives no vocab_size; put the served model's config there")
    return ModelSizes(vocab_size=vocab_size, max_positions=_max_positions(found, config))


def _max_positions(source: ModelSource, config: Any) -> int | None:
    longest = min(length_limits(config), default=None)
    if longest is not None and longest < 2:
        raise ModelError(f"{source.given}: its config.json gives {longest} as the longest input: expected at least 2")
    return longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix that each token is multiplied by."""

    n_in: int
    n_out: int
    layer: int | None
    """Number of its layer; None outside of the layers."""
    times: int = 1
    """Such products for each token: the experts that it uses."""
    starts_at_zero: bool = False
    """Whether it is a `lora_B` matrix; of an adapter, only these tell the update."""

    @property
    def n_active(self) -> int:
        """Parameters that a token is multiplied by."""
        return self.n_in * self.n_out * self.times


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention of each token to all tokens of its text."""

    n_layers: int
    """Layers that have it."""
    n_heads: int
    head_sizes: int
    """Numbers of one head's query and of its value together."""

    def flops(self, length: int) -> int:
        """Return the FLOPs for one text: two for each pair of tokens, head and number."""
        return 2 * length**2 * self.n_layers * self.n_heads * self.head_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Shape of a causal LM."""

    name: str
    model_type: str
    stored: torch.dtype
    """Dtype that its config gives."""
    n_parameters: int
    """Parameters; tied weights count once."""
    vocab_size: int
    hidden_size: int
    max_positions: int | None
    """Longest input, in tokens; None if the config gives none."""
    products: tuple[Product, ...]
    """All matrices but embeddings and the head."""
    attention: Attention
    notes: tuple[str, ...]
    """What the config leaves open."""

    @property
    def n_head(self) -> int:
        """Parameters of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def n_active(self) -> int:
        """Parameters that a token is multiplied by, the head included."""
        return sum(product.n_active for product in self.products) + self.n_head

    def last(self, n_layers: int | None) -> tuple[Product, ...]:
        """Return the matrices of the last layers; None: of all layers."""
        layers = sorted({product.layer for product in self.products if product.layer is not None})[-(n_layers or 0) :]
        return tuple(product for product in self.products if product.layer in layers)

    def n_readable(self, n_layers: int | None) -> int:
        """Return how many numbers of the last layers (None: all) can tell the update of the weights."""
        zeros = tuple(product for product in self.products if product.starts_at_zero)
        return sum(p.n_in * p.n_out for p in replace(self, products=zeros or self.products).last(n_layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairShape:
    """Shapes of a target and its base."""

    target: ModelShape
    reference: ModelShape
    is_shared: bool
    """Whether one copy of the weights serves both: the target is an adapter that can be switched off."""
    notes: tuple[str, ...] = ()
    """What was taken for granted."""

    @property
    def n_parameters(self) -> int:
        """Parameters of both models; shared ones count once."""
        return self.target.n_parameters + (0 if self.is_shared else self.reference.n_parameters)


def pair_shape(target: str, base: str | None, options: LoadOptions) -> PairShape:
    """Find the shapes of a pair from configs alone.

    Args:
        target: Folder with config.json or adapter_config.json, or hub id.
        base: The same for the base. None or "auto": a full fine-tune has the shape of its base; an adapter's config
            names its base.
        options: `trust_remote_code` and `allow_hub` are read.

    Raises:
        ModelError: If a config is missing, damaged or of an unknown architecture, or a model is a GGUF file.
    """
    source = find_source(target)
    if not source.is_adapter:
        shape = _shape(source, _on_meta(source, options))
        if base in (None, "auto"):
            return PairShape(target=shape, reference=shape, is_shared=False, notes=("the base has the target's shape",))
        below = adapter_stack(find_source(str(base)), allow_hub=options.allow_hub)[-1]
        return PairShape(target=shape, reference=_shape(below, _on_meta(below, options)), is_shared=False)
    named = base_source(source, base, allow_hub=options.allow_hub)
    below = adapter_stack(named, allow_hub=options.allow_hub)[-1]
    model = _on_meta(below, options)
    reference = _shape(below, model)
    config = refuse_clearly(source, lambda: PeftConfig.from_pretrained(str(source.path)))
    changed = changes_base(config)
    # The first weights of an adapter may be computed from the base's, which has none here.
    config.init_lora_weights = True
    with torch.device("meta"):
        adapted = refuse_clearly(source, lambda: get_peft_model(model, config))
    shape = _shape(source, adapted)
    notes = [] if changed is None else [f"the adapter has {changed}, so its base is loaded as a second model"]
    if config.is_prompt_learning:
        notes.append(f"the adapter's {config.num_virtual_tokens} virtual tokens before each text are not counted")
    return PairShape(target=shape, reference=reference, is_shared=changed is None, notes=tuple(notes))


def _on_meta(source: ModelSource, options: LoadOptions) -> Any:
    """Build a model without weights."""
    if source.is_gguf:
        raise ModelError(
            f"{source.given}: a GGUF file keeps its sizes beside its weights; plan with the folder or hub id of the "
            "model it was made from, which has a config.json"
        )
    if source.path is not None and not (source.path / "config.json").is_file():
        raise ModelError(f"{source.given}: no config.json (nor {ADAPTER_CONFIG}); a plan needs one, but no weights")
    trusted = options.trust_remote_code
    config = read_config_alone(source, trust_remote_code=trusted)
    check_unpackable(source, config)
    check_config(source, config)
    with torch.device("meta"):
        return refuse_clearly(source, lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=trusted))


def _shape(source: ModelSource, model: Any) -> ModelShape:
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise ModelError(f"{source.given}: {model.config.model_type} has no output head of one matrix: not a causal LM")
    vocab_size, hidden_size = head.weight.shape
    body = model.get_decoder() if hasattr(model, "get_decoder") else model
    notes: list[str] = []
    products = tuple(_products(body, head, config, notes))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if not (vocab_size and hidden_size and products):
        raise ModelError(f"{source.given}: its config.json describes a model without weights: a size in it is 0")
    return ModelShape(
        name=source.given,
        model_type=model.config.model_type,
        stored=dtype_in(model.config),
        n_parameters=n_parameters,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        max_positions=_max_positions(source, model.config),
        products=products,
        attention=_attention(body, config, notes),
        notes=tuple(dict.fromkeys(notes)),
    )


def _products(body: nn.Module, head: nn.Module, config: Any, notes: list[str]) -> Iterator[Product]:
    """Yield the matrices of a model without its head; a shared one as often as it is used."""
    n_experts = number_in(config, EXPERTS)
    active = number_in(config, ACTIVE_EXPERTS)
    left_out = {id(parameter) for parameter in head.parameters()}
    for place, module in body.named_modules(remove_duplicate=False):
        parts = place.split(".")
        if isinstance(module, nn.Embedding) or "original_module" in parts:
            continue
        numbered = LAYER.search(place + ".")
        layer = int(numbered[1]) if numbered else None
        for parameter in module.parameters(recurse=False):
            if parameter.ndim < 2 or id(parameter) in left_out:
                continue
            shape, times = parameter.shape, 1
            if parts[-1] == "experts" and len(parameter) == n_experts:
                shape, times = shape[1:], _times(module, n_experts, active, notes)
            elif "experts" in parts:
                notes.append("its experts are not stacked in one tensor each: all of them are counted for each token")
            is_zero = "lora_B" in parts
            yield Product(n_in=shape[1:].numel(), n_out=shape[0], layer=layer, times=times, starts_at_zero=is_zero)


def _times(experts: nn.Module, n_experts: int, active: int | None, notes: list[str]) -> int:
    """Return how many experts work on each token."""
    if len(inspect.signature(experts.forward).parameters) == 1:
        # They get the hidden states alone, so they are not told which tokens are theirs.
        notes.append("each of its experts works on every token, in the code that runs here: all of them are counted")
        return n_experts
    if active is None:
        notes.append("the config does not say how many experts a token uses: all of them are counted")
    return active or n_experts


def _attention(body: nn.Module, config: Any, notes: list[str]) -> Attention:
    """Count the layers with attention by the names of their modules, and read its sizes from the config."""
    found = [name for name, module in body.named_modules(remove_duplicate=False) if _is_attention(module)]
    outer = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    n_heads = number_in(config, ("num_attention_heads",))
    if outer and n_heads is None:
        notes.append("its config does not give one number of heads: products of attention are not counted")
    if not outer or n_heads is None:
        notes.append(
            "it has layers without attention, whose recurrence is slower than the matrix products counted here"
        )
        return Attention(n_layers=0, n_heads=0, head_sizes=0)
    if len(outer) < config.num_hidden_layers:
        notes.append(
            "it has layers without attention, whose recurrence is slower than the matrix products counted here"
        )
    size = number_in(config, ("head_dim",)) or config.hidden_size // n_heads
    query, value = number_in(config, ("qk_head_dim",)) or size, number_in(config, ("v_head_dim",)) or size
    return Attention(n_layers=len(outer), n_heads=n_heads, head_sizes=query + value)


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Attention" in name and "Linear" not in name and "Rwkv" not in name
