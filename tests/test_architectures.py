"""A sample of the architectures that scripts/architectures.py runs through the whole pass; all are a slow test."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def script():
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "scripts" / "architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures = script()
SAMPLE = (
    "bart", "bert", "deepseek_v3", "falcon", "falcon_mamba", "gemma3_text", "gpt_oss", "gptj", "jamba", "mamba2",
    "olmo2", "qwen3_next", "xglm",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_equals_the_plain_loop_in_any_batch(name: str) -> None:
    outcome = architectures.examine(name)
    assert (outcome.state, outcome.reason) == ("works", "")
    assert outcome.difference < architectures.TOLERANCE


def test_a_model_of_masks_is_refused_with_the_reason() -> None:
    outcome = architectures.examine("cpmant")
    assert outcome.state == "refused"
    assert "no causal LM" in outcome.reason


def test_the_page_tells_of_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [architectures.Outcome(name=state, state=state, reason="why") for state in ("works", "wrong", "refused")]
    text = architectures.page(outcomes)
    assert "3 architectures: 1 work, 1 go wrong, 1 are refused, 0 could not be built" in text
    assert "| wrong | why |" in text
    published = (ROOT / "docs" / "architectures.md").read_text("utf-8")
    names = set(architectures.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert all(name in published for name in names)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_architecture_goes_wrong() -> None:
    names = list(architectures.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = list(architectures.run(names, 120))
    assert [outcome for outcome in outcomes if outcome.state == "wrong"] == []
    assert sum(outcome.state == "works" for outcome in outcomes) >= 60
