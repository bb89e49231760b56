"""A sample of the architectures that scripts/architectures.py runs through the whole pass; all are a slow test."""

from pathlib import Path

import architectures
import pytest
import torch

from ltmia.finetuning.lora import add_lora

ROOT = Path(__file__).parents[2]
SAMPLE = (
    "bart", "bert", "deepseek_v3", "falcon", "falcon_mamba", "gemma3", "gemma3_text", "gemma4", "gpt_oss", "gptj",
    "jamba", "mamba2", "olmo2", "qwen3_next", "xglm",
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_equals_the_plain_loop_in_any_batch(name: str) -> None:
    outcome = architectures.run_architecture(name)
    assert (outcome.state, outcome.reason) == ("works", "")
    assert outcome.difference < architectures.TOLERANCE


def test_a_model_of_masks_is_refused_with_the_reason() -> None:
    outcome = architectures.run_architecture("cpmant")
    assert outcome.state == "refused"
    assert "not a causal LM" in outcome.reason


@pytest.mark.parametrize("name", ["llama4", "deepseek_v4"])
def test_adapters_leave_alone_what_answers_otherwise_than_a_linear_layer(name: str) -> None:
    tuned = add_lora(architectures.build(name), rank=4, alpha=8, seed=0)
    ids = torch.arange(3, 15)[None]
    tuned(input_ids=ids, labels=ids).loss.backward()
    trained = {place for place, weight in tuned.named_parameters() if weight.requires_grad}
    assert any("q_" in place for place in trained)
    assert not any("router" in place or "o_a_proj" in place for place in trained)


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
