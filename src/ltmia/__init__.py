"""Which texts was a fine-tuned language model trained on, and how sure can we be?

The names below are the public Python API; they load on first use, so that importing the package is instant.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltmia.attacks.table import ATTACKS
    from ltmia.auditing.audit import audit
    from ltmia.auditing.score import score
    from ltmia.classifier.membership import MembershipClassifier
    from ltmia.data.prompt_logprobs import from_prompt_logprobs
    from ltmia.data.reading import read_texts
    from ltmia.data.recordings import RecordingHeader, write_recording
    from ltmia.models.chat import chat_template
    from ltmia.models.loading import load_pair
    from ltmia.models.pair import Pair
    from ltmia.scoring.in_memory import extract_features, score_texts
    from ltmia.scoring.recorded_pair import load_recorded_pair

_HOMES = {
    "ATTACKS": "ltmia.attacks.table",
    "MembershipClassifier": "ltmia.classifier.membership",
    "Pair": "ltmia.models.pair",
    "RecordingHeader": "ltmia.data.recordings",
    "audit": "ltmia.auditing.audit",
    "chat_template": "ltmia.models.chat",
    "extract_features": "ltmia.scoring.in_memory",
    "from_prompt_logprobs": "ltmia.data.prompt_logprobs",
    "load_pair": "ltmia.models.loading",
    "load_recorded_pair": "ltmia.scoring.recorded_pair",
    "read_texts": "ltmia.data.reading",
    "score": "ltmia.auditing.score",
    "score_texts": "ltmia.scoring.in_memory",
    "write_recording": "ltmia.data.recordings",
}

__all__ = [
    "ATTACKS",
    "MembershipClassifier",
    "Pair",
    "RecordingHeader",
    "audit",
    "chat_template",
    "extract_features",
    "from_prompt_logprobs",
    "load_pair",
    "load_recorded_pair",
    "read_texts",
    "score",
    "score_texts",
    "write_recording",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("ltmia")
    if name not in _HOMES:
        raise AttributeError(f"module 'ltmia' has no attribute {name!r}; it has {sorted(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
