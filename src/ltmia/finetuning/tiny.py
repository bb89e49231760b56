"""Builds tiny bases: their tokenizer and their model.

This module knows the transformers config of a small model of each architecture.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ltmia.errors import ConfigError
from ltmia.records import without_surrogates

END_OF_TEXT = "<|endoftext|>"
END_ID = 0
SMALLEST_VOCABULARY = 257
"""256 bytes and the end of text."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose one special token ends a text and pads.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: Training texts; lone surrogates are read as "?".
        vocab_size: Wanted size of the vocabulary, with the special token and 256 bytes.

    Raises:
        ConfigError: If `vocab_size` is less than 257.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(f"vocab_size = {vocab_size}: a byte-level tokenizer needs {SMALLEST_VOCABULARY} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(without_surrogates, texts), trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """Shape of a small model, with the same names for every architecture."""

    model_type: str
    """A key of `ARCHITECTURES`."""
    vocab_size: int
    """Rows of the embedding; the tokenizer's length."""
    hidden_size: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    """Blocks."""
    n_heads: int = 4
    """Attention heads; unused in architectures without attention."""
    max_positions: int = 512
    """Longest sequence, if the architecture has a limit."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        if self.model_type not in ARCHITECTURES:
            near = difflib.get_close_matches(self.model_type, ARCHITECTURES, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(
                f"model_type = {self.model_type!r} is unknown: {hint}known are {', '.join(ARCHITECTURES)}"
            )
        for name in ("vocab_size", "hidden_size", "n_layers", "n_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        kind = ARCHITECTURES[self.model_type]
        step = self.n_heads * kind.head_multiple
        if self.hidden_size % step:
            raise ConfigError(
                f"hidden_size = {self.hidden_size} with n_heads = {self.n_heads}: "
                f"{self.model_type} needs a multiple of {step}"
            )
        if self.n_layers < kind.least_layers:
            raise ConfigError(f"n_layers = {self.n_layers}: {self.model_type} needs at least {kind.least_layers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Recipe for a small model of one architecture."""

    settings: Callable[[TinyConfig], dict[str, Any]]
    """Returns the keywords of the transformers config for a shape."""
    held_out: bool = False
    """Never used for training classifiers: kept to measure transfer to another architecture."""
    head_multiple: int = 1
    """`hidden_size` must be a multiple of this times `n_heads`; 2 for rotary positions."""
    least_layers: int = 1
    """Fewest layers with which the architecture works."""


def _usual(shape: TinyConfig, ratio: int = 4, **more: object) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": ratio * shape.hidden_size,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "max_position_embeddings": shape.max_positions,
    } | more


def _gpt2(shape: TinyConfig) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden_size,
        "n_layer": shape.n_layers,
        "n_head": shape.n_heads,
        "n_positions": shape.max_positions,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        # The function of "gelu_new" in one operation; six of them take a third of the time of a pass.
        "activation_function": "gelu_pytorch_tanh",
    }


def _gpt_neo(shape: TinyConfig) -> dict[str, Any]:
    pairs, odd = divmod(shape.n_layers, 2)
    kinds: list[Any] = [[["global", "local"], pairs]] if pairs else []
    return {
        "hidden_size": shape.hidden_size,
        "num_layers": shape.n_layers,
        "num_heads": shape.n_heads,
        "attention_types": kinds + ([[["global"], 1]] if odd else []),
        "window_size": 64,
        "max_position_embeddings": shape.max_positions,
    }


def _opt(shape: TinyConfig) -> dict[str, Any]:
    feed_forward = {"ffn_dim": 4 * shape.hidden_size, "dropout": 0.0}
    return _usual(shape, word_embed_proj_dim=shape.hidden_size) | feed_forward


def _bloom(shape: TinyConfig) -> dict[str, Any]:
    return {"hidden_size": shape.hidden_size, "n_layer": shape.n_layers, "n_head": shape.n_heads}


def _mpt(shape: TinyConfig) -> dict[str, Any]:
    return {
        "d_model": shape.hidden_size,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "max_seq_len": shape.max_positions,
    }


def _qwen2(shape: TinyConfig) -> dict[str, Any]:
    groups = 2 if shape.n_heads % 2 == 0 else 1
    return _usual(shape, 3, num_key_value_heads=shape.n_heads // groups, tie_word_embeddings=True)


def _gemma(shape: TinyConfig) -> dict[str, Any]:
    return _usual(shape, 3, num_key_value_heads=1, head_dim=shape.hidden_size // shape.n_heads)


def _recurrent_gemma(shape: TinyConfig) -> dict[str, Any]:
    # The feed-forward layers get half of `intermediate_size`.
    return _usual(shape, 6, num_key_value_heads=1, attention_window_size=128, use_cache=False)


def _mamba(shape: TinyConfig) -> dict[str, Any]:
    # The plain path loops over positions; mambapy, where installed, scans them in parallel.
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.n_layers,
        "state_size": 8,
        "use_mambapy": True,
        "use_cache": False,
    }


def _rwkv(shape: TinyConfig) -> dict[str, Any]:
    # Rescaling layers is for half precision; without it training and scoring use the same weights.
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.n_layers,
        "context_length": shape.max_positions,
        "rescale_every": 0,
        "use_cache": False,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(settings=_gpt2),
    "gpt_neo": Architecture(settings=_gpt_neo),
    "gpt_neox": Architecture(settings=_usual, head_multiple=8),
    "llama": Architecture(settings=lambda shape: _usual(shape, 3), head_multiple=2),
    "qwen2": Architecture(settings=_qwen2, head_multiple=2),
    "opt": Architecture(settings=_opt),
    "bloom": Architecture(settings=_bloom),
    "phi": Architecture(settings=_usual, head_multiple=4),
    "mpt": Architecture(settings=_mpt),
    "gemma": Architecture(settings=_gemma, head_multiple=2),
    "mamba": Architecture(settings=_mamba, held_out=True),
    "rwkv": Architecture(settings=_rwkv, held_out=True, least_layers=2),
    "recurrent_gemma": Architecture(settings=_recurrent_gemma, held_out=True, head_multiple=4),
}


def build_base(config: TinyConfig, *, seed: int) -> PreTrainedModel:
    """Build an untrained small causal LM in float32; the same seed gives the same weights.

    The end of text has id 0. The config has no padding token, because the row of the embedding that it shares with the
    end of text would not be trained.
    """
    shared = {"vocab_size": config.vocab_size, "bos_token_id": END_ID, "eos_token_id": END_ID}
    settings: PreTrainedConfig = AutoConfig.for_model(
        config.model_type,
        **(shared | {"pad_token_id": None} | ARCHITECTURES[config.model_type].settings(config)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return model
