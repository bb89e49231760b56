"""The sections of `results.json` on the two models and their tokenizer."""

from pydantic import Field

from ltmia.evaluation.section import Count, Section


class AdapterInfo(Section):
    """The adapter of a model."""

    active: list[str]
    """Names of those that take part; empty for a reference that is the target with its adapter switched off."""
    sha256: str
    """Hash of the adapters' configs as loaded: rank, alpha, variant, targets."""


class ModelInfo(Section):
    """Identity of one of the two models."""

    source: str
    """Path, hub id or `memory`; what the recording calls it."""
    revision: str | None = None
    sha256: str
    """Hash of the weights as loaded, with their names and dtypes; of the recording where there is one."""
    config_sha256: str | None = None
    """Hash of the config as loaded, without paths and versions. Null, as the next two, for a recording."""
    modules_sha256: str | None = None
    """Hash of what neither weights nor config hold: attributes of modules, other buffers, code of the model's own."""
    adapter: AdapterInfo | None = None
    """Null for a model without an adapter as well."""
    architecture: str | None
    """Null, as the next two, for a model that was only recorded."""
    n_parameters: Count | None
    dtype: str | None
    trust_remote_code: bool = False
    remarks: list[str] = Field(default_factory=list)
    """What had to be done to its weights when they were loaded, such as unpacking them."""
    recorded_by: str | None = None
    """What recorded its log-probabilities; null if it was run for this audit."""


class TokenizerInfo(Section):
    """The tokenizer both models share."""

    sha256: str | None
    """Hash of vocabulary, merges, normaliser, special tokens and chat template. Null if the recordings do not say."""
    vocab_size: Count
