"""The sections of `results.json` on the two models and their tokenizer."""

from pydantic import Field

from ltmia.evaluation.section import Count, Section


class AdapterInfo(Section):
    """The adapter of a model."""

    active: list[str]
    """Names of the adapters in use; empty for a reference that is the target with its adapter switched off."""
    sha256: str
    """Hash of the adapters' configs as loaded: rank, alpha, variant, targets."""


class ModelInfo(Section):
    """Identity of one of the two models."""

    source: str
    """Path, hub id or `memory`; for a recording, the name in its header."""
    revision: str | None = None
    sha256: str
    """Hash of the weights as loaded, with their names and dtypes; for a recording, the hash of its file."""
    config_sha256: str | None = None
    """Hash of the config as loaded, without paths and versions. Null for a recording, like the next two fields."""
    modules_sha256: str | None = None
    """Hash of everything else in the model: attributes of modules, other buffers, the model's own code."""
    adapter: AdapterInfo | None = None
    """Also null for a model without an adapter."""
    architecture: str | None
    """Null for a recording, like the next two fields."""
    n_parameters: Count | None
    dtype: str | None
    trust_remote_code: bool = False
    remarks: list[str] = Field(default_factory=list)
    """Changes that were needed to load the weights, such as unpacking them."""
    recorded_by: str | None = None
    """Program that recorded the log-probabilities; null if the model ran for this audit."""


class TokenizerInfo(Section):
    """The tokenizer both models share."""

    sha256: str | None
    """Hash of vocabulary, merges, normaliser, special tokens and chat template. Null if the recordings do not say."""
    vocab_size: Count
