"""What identifies the models of an audit: hashes, sizes, sources."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ltmia.evaluation.results import ModelInfo, TokenizerInfo
from ltmia.models.identity import parameters_sha256
from ltmia.models.pair import ModelOrigin, Pair
from ltmia.runtime import dtype_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PairIdentity:
    """Both models and their tokenizer, as results files name them; work is resumed only for the same hashes."""

    target: ModelInfo
    reference: ModelInfo
    tokenizer: TokenizerInfo

    @classmethod
    def of(cls, pair: Pair) -> "PairIdentity":
        """Hash and describe both models."""
        # The reference first: of models that take turns, the target is then in memory for what comes next.
        if pair.reference is None:
            with pair.target.disable_adapter():
                reference = _describe(pair.target.get_base_model(), pair.reference_origin)
        else:
            reference = _describe(pair.reference, pair.reference_origin)
        target = _describe(pair.target, pair.target_origin)
        return cls(target=target, reference=reference, tokenizer=describe_tokenizer(pair))

    @property
    def hashes(self) -> tuple[str, str, str | None]:
        """What decides every score."""
        return self.target.sha256, self.reference.sha256, self.tokenizer.sha256


def _describe(model: Any, origin: ModelOrigin) -> ModelInfo:
    return ModelInfo(
        source=origin.source,
        revision=origin.revision,
        sha256=parameters_sha256(model),
        architecture=str(model.config.model_type),
        n_parameters=sum(p.numel() for p in model.parameters()),
        dtype=dtype_name(next(model.parameters()).dtype),
        trust_remote_code=origin.trust_remote_code,
        remarks=list(origin.remarks),
    )


def describe_tokenizer(pair: Pair) -> TokenizerInfo:
    """Hash a pair's tokenizer."""
    vocabulary = json.dumps(sorted(pair.tokenizer.get_vocab().items()))
    return TokenizerInfo(
        sha256=hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest(),
        vocab_size=pair.vocab_size,
    )
