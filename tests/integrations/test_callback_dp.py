"""The callback on a training run under differential privacy, with Opacus. Needs the extra `dp`."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ltmia.auditing.audit import AuditConfig
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.integrations.callback import AuditCallback, AuditPlan, hold_out

opacus = pytest.importorskip("opacus", reason='Opacus is not installed: pip install "ltmia[dp]" to run these tests')


class Cleared(TrainerCallback):
    """Clears gradients through Opacus's optimizer, because Trainer clears only those of the model."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.optimizer.zero_grad()


def test_epsilon_spent_stands_beside_what_was_measured_and_a_still_adapter_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_base_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ids = [tokenizer(text, truncation=True, max_length=32)["input_ids"] for text in demo_texts().texts[:80]]
    train, held_out = hold_out(Dataset.from_dict({"input_ids": ids}), share=0.5)
    adapter = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo_base_path(), dtype=torch.float32), adapter).train()
    still = next(name for name, value in model.named_parameters() if value.requires_grad and "lora_A" in name)
    moving = [value for name, value in model.named_parameters() if value.requires_grad and name != still]
    engine = opacus.PrivacyEngine()
    _, optimizer, _ = engine.make_private(
        module=model, optimizer=torch.optim.AdamW(moving, lr=1e-2), data_loader=torch.utils.data.DataLoader(train, 8),
        noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=False, wrap_model=False,
    )  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "out"), use_cpu=True, report_to=[], save_strategy="no", max_steps=5, disable_tqdm=True,
            max_grad_norm=0.0,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), train_dataset=train,
        eval_dataset=held_out, processing_class=tokenizer, optimizers=(optimizer, None), callbacks=[Cleared(optimizer)],
    )  # fmt: skip
    plan = AuditPlan(
        base=demo_base_path(), config=AuditConfig(attacks="loss"), epsilon_spent=lambda: engine.get_epsilon(1e-2)
    )
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", plan))
    with caplog.at_level(logging.WARNING, "ltmia.integrations.training_counts"):
        trainer.train()
    told = json.loads((tmp_path / "audit" / "training.json").read_text("utf-8"))
    accountant = opacus.accountants.create_accountant("prv")
    accountant.history = [(1.0, 8 / 40, 5)]
    assert told["epsilon_spent"] == pytest.approx(accountant.get_epsilon(1e-2), rel=1e-6)
    results = json.loads((tmp_path / "audit" / "results.json").read_text("utf-8"))
    assert told["epsilon_lower_bound"] == results["epsilon"]["value"]
    assert told["trained_tensors_without_change"] == 1
    assert told["trained_tensors"] == len(moving) + 1
    assert f"1 of {len(moving) + 1} tensors that should be trained did not change" in caplog.text
