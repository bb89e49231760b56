"""Identifies the models of an audit by hashes, sizes and sources."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ltmia.evaluation.pair_info import AdapterInfo, ModelInfo, TokenizerInfo
from ltmia.models.identity import ModelIdentity, active_adapters, tokenizer_sha256
from ltmia.models.pair import ModelOrigin, Pair
from ltmia.models.spread import n_parameters
from ltmia.runtime import dtype_name
from ltmia.shown_names import shown_path

PROVENANCE = {"source", "revision", "trust_remote_code", "remarks", "recorded_by"}
"""Facts on a model for the results file; they do not affect scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairIdentity:
    """Both models and their tokenizer, as results files name them."""

    target: ModelInfo
    reference: ModelInfo
    tokenizer: TokenizerInfo

    @classmethod
    def of(cls, pair: Pair) -> "PairIdentity":
        """Hash and describe both models."""
        # The reference first: if only one model fits into memory, the target is then loaded for the next step.
        if pair.reference is None:
            with pair.target.disable_adapter():
                reference = _describe(pair.target.get_base_model(), pair.reference_origin)
        else:
            reference = _describe(pair.reference, pair.reference_origin)
        target = _describe(pair.target, pair.target_origin)
        return cls(target=target, reference=reference, tokenizer=describe_tokenizer(pair))

    @property
    def key(self) -> str:
        """One hash of everything that decides the two models' outputs; work is resumed only if it is the same."""
        models = [info.model_dump(mode="json", exclude=PROVENANCE) for info in (self.target, self.reference)]
        return sha256(json.dumps([*models, self.tokenizer.model_dump()], sort_keys=True).encode()).hexdigest()


def _describe(model: Any, origin: ModelOrigin) -> ModelInfo:
    identity = ModelIdentity.of(model)
    adapter = AdapterInfo(active=active_adapters(model), sha256=identity.adapter) if identity.adapter else None
    return ModelInfo(
        source=shown_path(origin.source),
        revision=origin.revision,
        sha256=identity.parameters,
        config_sha256=identity.config,
        modules_sha256=identity.modules,
        adapter=adapter,
        architecture=str(model.config.model_type),
        n_parameters=n_parameters(model),
        dtype=dtype_name(next(model.parameters()).dtype),
        trust_remote_code=origin.trust_remote_code,
        remarks=list(origin.remarks),
    )


def describe_tokenizer(pair: Pair) -> TokenizerInfo:
    """Hash a pair's tokenizer."""
    return TokenizerInfo(sha256=tokenizer_sha256(pair.tokenizer), vocab_size=pair.vocab_size)
