"""Finds out which texts a fine-tuned language model was trained on, and how sure that is.

The names below are the public Python API; they load on first use, so that importing the package is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltmia.attacks.table import ATTACKS
    from ltmia.auditing.audit import AuditConfig, audit
    from ltmia.auditing.question import AuditResult
    from ltmia.auditing.score import ScoreConfig, score
    from ltmia.classifier.membership import MembershipClassifier
    from ltmia.data.embedded import demo_base_path, demo_texts
    from ltmia.data.prompt_logprobs import from_prompt_logprobs
    from ltmia.data.reading import read_texts
    from ltmia.data.recordings import RecordingHeader, write_recording
    from ltmia.data.splits import draw_membership
    from ltmia.evaluation.comparison import compare_audits as compare
    from ltmia.evaluation.gate import hold_against as gate
    from ltmia.evaluation.limits import Limit
    from ltmia.finetuning.config import FinetuneConfig
    from ltmia.finetuning.finetune import finetune
    from ltmia.models.chat import chat_template
    from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
    from ltmia.models.pair import Pair
    from ltmia.models.training_run import load_training_run
    from ltmia.records import Texts
    from ltmia.scoring.in_memory import extract_features, score_texts
    from ltmia.scoring.recorded_pair import load_recorded_pair

_HOMES = {
    "ATTACKS": "ltmia.attacks.table",
    "AuditConfig": "ltmia.auditing.audit",
    "AuditResult": "ltmia.auditing.question",
    "FinetuneConfig": "ltmia.finetuning.config",
    "Limit": "ltmia.evaluation.limits",
    "LoadOptions": "ltmia.models.loading",
    "MembershipClassifier": "ltmia.classifier.membership",
    "Pair": "ltmia.models.pair",
    "RecordingHeader": "ltmia.data.recordings",
    "ScoreConfig": "ltmia.auditing.score",
    "Texts": "ltmia.records",
    "audit": "ltmia.auditing.audit",
    "chat_template": "ltmia.models.chat",
    "compare": "ltmia.evaluation.comparison",
    "demo_base_path": "ltmia.data.embedded",
    "demo_texts": "ltmia.data.embedded",
    "draw_membership": "ltmia.data.splits",
    "extract_features": "ltmia.scoring.in_memory",
    "finetune": "ltmia.finetuning.finetune",
    "from_prompt_logprobs": "ltmia.data.prompt_logprobs",
    "gate": "ltmia.evaluation.gate",
    "load_model": "ltmia.models.loading",
    "load_pair": "ltmia.models.loading",
    "load_training_run": "ltmia.models.training_run",
    "load_recorded_pair": "ltmia.scoring.recorded_pair",
    "load_tokenizer": "ltmia.models.loading",
    "read_texts": "ltmia.data.reading",
    "score": "ltmia.auditing.score",
    "score_texts": "ltmia.scoring.in_memory",
    "write_recording": "ltmia.data.recordings",
}
_CALLED_THERE = {"compare": "compare_audits", "gate": "hold_against"}
"""Public names that differ from the name of the function in its module."""

__all__ = [
    "ATTACKS",
    "AuditConfig",
    "AuditResult",
    "FinetuneConfig",
    "Limit",
    "LoadOptions",
    "MembershipClassifier",
    "Pair",
    "RecordingHeader",
    "ScoreConfig",
    "Texts",
    "audit",
    "chat_template",
    "compare",
    "demo_base_path",
    "demo_texts",
    "draw_membership",
    "extract_features",
    "finetune",
    "from_prompt_logprobs",
    "gate",
    "load_model",
    "load_pair",
    "load_recorded_pair",
    "load_tokenizer",
    "load_training_run",
    "read_texts",
    "score",
    "score_texts",
    "write_recording",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes a third of the time of --help

        return version("ltmia")
    if name not in _HOMES:
        raise AttributeError(f"module 'ltmia' has no attribute {name!r}; it has {sorted(_HOMES)}")
    return getattr(import_module(_HOMES[name]), _CALLED_THERE.get(name, name))


def __dir__() -> list[str]:
    return __all__
