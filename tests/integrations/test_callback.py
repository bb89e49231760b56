"""The callback on real training runs: what it scores is what the Trainer's own collator gave loss to."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from killed import die, killed
from ltmia.auditing.audit import AuditConfig
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError, StoreError
from ltmia.integrations.callback import AuditCallback, AuditPlan, LimitExceeded, hold_out
from ltmia.integrations.kept_checkpoints import KeptCheckpoints
from ltmia.integrations.scored_rows import TrainedPair, scored_rows
from ltmia.integrations.trained_rows import TrainedRow, TrainedRows, rows_of
from ltmia.integrations.trained_tensors import fingerprints, unmoved
from ltmia.integrations.training_counts import warn_of
from ltmia.models.loading import load_pair
from ltmia.scoring.extraction import ExtractionConfig, ExtractionRun
from ltmia.scoring.in_memory import score_texts
from ltmia.scoring.pair_runner import ExtractionClock

LENGTH = 48
LOSS = AuditPlan(config=AuditConfig(attacks="loss"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(demo_base_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def dataset(tokenizer: Any) -> Dataset:
    texts, groups = demo_texts().texts[:80], demo_texts().groups[:80]
    ids = [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts]
    return Dataset.from_dict({"input_ids": ids, "document": groups})


def trainer_of(dataset: Dataset, tokenizer: Any, folder: Path, **options: Any) -> Trainer:
    model = AutoModelForCausalLM.from_pretrained(demo_base_path(), dtype=torch.float32)
    train, held_out = hold_out(dataset, share=0.5, group_column="document")
    arguments = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "report_to": [], "save_strategy": "no"}
    return Trainer(
        model,
        TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**arguments, **options}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    folder = tmp_path_factory.mktemp("trained")
    trainer = trainer_of(dataset, tokenizer, folder / "checkpoints", num_train_epochs=2)
    plan = AuditPlan(config=AuditConfig(attacks="loss,difference"), group_column="document")
    trainer.add_callback(AuditCallback(trainer, folder / "audit", plan))
    trainer.train()
    return trainer, folder / "audit"


def test_hold_out_is_by_group_and_the_same_again(dataset: Dataset) -> None:
    first, second = (hold_out(dataset, share=0.5, group_column="document", seed=3) for _ in range(2))
    assert [part["input_ids"] for part in first] == [part["input_ids"] for part in second]
    train, held_out = first
    assert len(train) + len(held_out) == len(dataset)
    assert not set(train["document"]) & set(held_out["document"])
    assert len(held_out) > 20
    with pytest.raises(ConfigError, match="the dataset has input_ids, document"):
        hold_out(dataset, share=0.5, group_column="patient")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hold_out(dataset, share=1.5)


def test_scores_are_the_models_own_loss_on_what_was_trained_on(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    records = pq.read_table(folder / "records.parquet").to_pydict()
    sides = {1: trainer.train_dataset, 0: trainer.eval_dataset}
    model = trainer.model.eval()
    for label, data in sides.items():
        expected = []
        for ids in {tuple(ids) for ids in data["input_ids"]}:
            batch = trainer.data_collator([{"input_ids": list(ids)}])
            with torch.no_grad():
                expected.append(-model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item())
        rows = [i for i, found in enumerate(records["label"]) if found == label]
        assert sorted(records["score_loss"][i] for i in rows) == pytest.approx(sorted(expected), abs=1e-3)
    assert len(set(records["group"])) == len({*sides[1]["document"], *sides[0]["document"]})


def test_what_was_trained_on_is_counted(finished: tuple[Trainer, Path]) -> None:
    trainer, folder = finished
    counts = json.loads((folder / "training.json").read_text("utf-8"))
    train = {tuple(ids) for ids in trainer.train_dataset["input_ids"]}
    assert counts["rows_trained"] == len(train)
    assert counts["rows_of_the_dataset_never_trained_on_as_they_are"] == 0
    assert counts["tokens_read"] == sum(map(len, train))
    assert counts["most_times_a_row_was_trained_on"] >= 2
    assert counts["steps"] == trainer.state.global_step
    assert counts["trained_tensors"] == sum(p.requires_grad for p in trainer.model.parameters())
    assert counts["trained_tensors_without_change"] == 0
    assert counts["epsilon_spent"] is None
    assert not (folder / "private" / "model").exists()
    told = (folder / "private" / "trained.jsonl").read_text("utf-8").splitlines()
    times = Counter(key for line in map(json.loads, told) for key in line["rows"])
    assert sum(times.values()) == 2 * len(trainer.train_dataset)


@pytest.mark.parametrize(("at_limit", "every"), [("stop", 1), ("fail", 3)])
def test_a_limit_ends_the_training(at_limit: Any, every: int, dataset: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_of(dataset, tokenizer, tmp_path / "checkpoints", max_steps=4)
    plan = AuditPlan(config=LOSS.config, every=every, limits=["auc:0.01"], at_limit=at_limit)
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", plan))
    if at_limit == "fail":
        with pytest.raises(LimitExceeded, match=r"step-3: failed: AUC"):
            trainer.train()
    else:
        trainer.train()
        assert (tmp_path / "audit" / "results.json").is_file()
    assert trainer.state.global_step == 3, "before, fewer than 20 rows were trained on, and the gate could not tell"
    assert (tmp_path / "audit" / "step-3" / "report.html").is_file()


def test_a_folder_that_is_not_this_runs_is_refused_before_training(
    finished: tuple[Trainer, Path], dataset: Dataset, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", "utf-8")
    for folder, message in ((finished[1], "another training run"), (tmp_path / "thesis", "chapter.txt")):
        before = sorted(folder.rglob("*"))
        trainer = trainer_of(dataset, tokenizer, tmp_path / "checkpoints", max_steps=1)
        trainer.add_callback(AuditCallback(trainer, folder, LOSS))
        with pytest.raises(ConfigError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0
        assert sorted(folder.rglob("*")) == before


def test_a_run_that_is_resumed_keeps_rows_and_hold_out(dataset: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    def train(name: str, killed_at: int | None = None, **options: Any) -> list[list[str]]:
        trainer = trainer_of(dataset, tokenizer, tmp_path / name, max_steps=4, save_strategy="steps", save_steps=2)
        plan = AuditPlan(config=AuditConfig(attacks="loss"), checkpoints=2)
        trainer.add_callback(AuditCallback(trainer, tmp_path / f"{name}-audit", plan))
        step = trainer.training_step

        def stopping(*args: Any, **rest: Any) -> Any:
            loss = step(*args, **rest)
            if trainer.state.global_step == killed_at:
                raise KeyboardInterrupt
            return loss

        trainer.training_step = stopping
        trainer.train(**options)
        lines = (tmp_path / f"{name}-audit" / "private" / "trained.jsonl").read_text("utf-8").splitlines()
        by_step: dict[int, list[str]] = {}
        for line in map(json.loads, lines):
            by_step.setdefault(line["step"], []).extend(line["rows"])
        return [by_step[n] for n in range(4)]

    undisturbed = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("killed", killed_at=3)
    kept = tmp_path / "killed-audit" / "private" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-1", "checkpoint-3"]
    (kept / "checkpoint-3" / "model.safetensors").write_bytes(b"of steps that are made again")
    (kept / "unfinished-1").mkdir()
    with (tmp_path / "killed-audit" / "private" / "trained.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "ro')  # the kill came in the middle of a line
    assert train("killed", resume_from_checkpoint=True) == undisturbed
    figures = [json.loads((tmp_path / f"{n}-audit" / "results.json").read_text("utf-8")) for n in ("whole", "killed")]
    assert figures[0]["attacks"] == figures[1]["attacks"]
    assert set(figures[0]["observers"]) == {"logprobs", "weights", "training_run"}
    read = [[found["sha256"] for found in figure["training_run"]["checkpoints"]] for figure in figures]
    assert read[0] == read[1]
    assert len(set(read[0])) == 2
    assert not kept.exists(), "the audit is done"
    assert figures[0]["target"]["sha256"] == figures[1]["target"]["sha256"]
    with pytest.raises(StoreError, match="training goes on from step 9, but the rows of step 4"):
        TrainedRows.open(tmp_path / "killed-audit" / "private" / "trained.jsonl", step=9)


def test_the_best_model_is_audited_as_the_earlier_state_that_it_is(
    dataset: Dataset, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its members are the rows of its steps, and a state of its own step or a later one ends no interval."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(dataset, tokenizer, tmp_path / "run", max_steps=4, **options)
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", replace(LOSS, checkpoints=1, every=2)))
    trainer.train()
    assert trainer.state.best_global_step == 2, "where the loss was highest"
    in_between, at_end = (
        json.loads((tmp_path / "audit" / folder / "results.json").read_text("utf-8")) for folder in ("step-2", "")
    )
    assert in_between["target"]["sha256"] == at_end["target"]["sha256"]
    assert in_between["attacks"] == at_end["attacks"]
    assert at_end["data"]["n_members"] == 16
    assert caplog.text.count("no state from before step 2 was kept") == 2


def test_kept_states_are_those_before_the_audited_step(tmp_path: Path) -> None:
    kept = KeptCheckpoints(tmp_path, 2)
    for name in ("checkpoint-10", "checkpoint-9", "unfinished-3", "checkpoint-last"):
        (tmp_path / name).mkdir()
    assert [path.name for path in kept.before(11)] == ["checkpoint-9", "checkpoint-10"]
    assert [path.name for path in kept.before(10)] == ["checkpoint-9"]
    kept.forget(after=9)
    assert [path.name for path in kept.before(99)] == ["checkpoint-9"]
    KeptCheckpoints(tmp_path, 0).forget(after=9)
    assert not kept.before(99), "resumed without any"


def test_the_audit_leaves_the_training_as_it_was(dataset: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    weights = []
    for every in (None, 1):
        trainer = trainer_of(dataset, tokenizer, tmp_path / f"run-{every}", max_steps=2, seed=1)
        trainer.model.config.resid_pdrop = 0.1
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        if every:
            plan = AuditPlan(config=LOSS.config, every=every)
            trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", plan))
        trainer.train()
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


PACKED = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]),
    "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]),
    "labels": torch.tensor([[-100, 6, 7, 8, -100, -100, 11, 12, -100, 14]]),
}


def test_rows_are_cut_where_positions_begin_again_and_padding_is_left_out() -> None:
    first, second = rows_of(PACKED)
    assert first.ids.tolist() == [5, 6, 7, 8]
    assert first.spans == [(1, 4)]
    assert second.ids.tolist() == [9, 10, 11, 12, 13, 14]
    assert second.spans == [(2, 4), (5, 6)]
    padded = {
        "input_ids": torch.tensor([[0, 5, 6, 7], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[-100, 5, 6, 7], [-100, -100, -100, -100]]),
    }
    found = list(rows_of(padded))
    assert [row.ids.tolist() for row in found] == [[5, 6, 7], [5, 6]]
    assert [row.spans for row in found] == [[(1, 3)], []]
    with pytest.raises(ConfigError, match="no labels"):
        list(rows_of({"input_ids": torch.tensor([[1, 2]])}))


def test_masked_rows_are_scored_token_by_token_as_they_were_trained(
    finished: tuple[Trainer, Path], tokenizer: Any, tmp_path: Path
) -> None:
    """Sum of log-probabilities over the answers of a row = minus the loss of a plain forward pass with its labels."""
    trainer, _ = finished
    trainer.save_model(str(tmp_path / "model"))
    pair = load_pair(tmp_path / "model", demo_base_path(), dtype="float32", device="cpu")
    rng = np.random.default_rng(0)
    ids = np.array(trainer.train_dataset[0]["input_ids"])
    scored = rng.random(len(ids)) < 0.8
    scored[0] = False
    row = TrainedRow(ids=ids, scored=scored)
    found = scored_rows({"row": row}, tokenizer, vocab_size=pair.vocab_size, groups={"row": "row"})
    trained = TrainedPair(pair, encoded=found.encoded)
    config = ExtractionConfig(attacks=("loss",), max_length=4)
    encoded = trained.encode(found.texts, config)
    assert sum(len(text.ids) - text.start for text in encoded) == scored.sum()
    run = ExtractionRun(encoded=encoded, done=frozenset(), clock=ExtractionClock(), scratch=tmp_path)
    batches = trained.extract(found.texts, config, run)
    total = sum(float(batch.statistics.tokens.target_logp.sum()) for batch in batches)
    lost = sum(len(text.ids) - text.start for text in encoded if text.reason)
    labels = torch.tensor(np.where(scored, ids, -100))
    for text in encoded:
        if text.reason:
            labels[text.start : len(text.ids)] = -100
    with torch.no_grad():
        loss = trainer.model.eval()(input_ids=torch.tensor(ids)[None], labels=labels[None]).loss.item()
    assert total == pytest.approx(-loss * (int(scored.sum()) - lost), rel=1e-4)
    assert set(found.texts.groups or ()) == {"row"}


@pytest.mark.parametrize(("spent", "shown", "warns"), [(1.0, 2.0, True), (2.0, 1.0, False), (None, 2.0, False)])
def test_more_leakage_than_was_spent_is_a_warning(spent: Any, shown: float, warns: bool, caplog: Any) -> None:
    with caplog.at_level("WARNING"):
        warn_of({"trained_tensors_without_change": 0, "epsilon_spent": spent, "epsilon_lower_bound": shown})
    assert ("leaks more than it guarantees" in caplog.text) == warns


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), st.integers(0, 4))
def test_a_tensor_that_moved_is_told_from_one_that_did_not(values: list[float], place: int) -> None:
    model = torch.nn.ParameterDict({"a": torch.tensor(values), "b": torch.tensor(values)})
    before = fingerprints(model)
    with torch.no_grad():
        model["a"][place % len(values)] += 1.0
    assert unmoved(before, model) == ["b"]


def test_what_the_callback_needs_is_said(dataset: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_of(dataset, tokenizer, tmp_path, max_steps=1)
    trainer.eval_dataset = None
    with pytest.raises(ConfigError, match="one eval_dataset"):
        AuditCallback(trainer, tmp_path / "audit")
    trainer = trainer_of(dataset, tokenizer, tmp_path, max_steps=1)
    trainer.model.config._name_or_path = ""
    with pytest.raises(ConfigError, match=r"base=\.\.\."):
        AuditCallback(trainer, tmp_path / "audit")
    with pytest.raises(ConfigError, match="no such tracker"):
        AuditCallback(trainer, tmp_path / "audit", AuditPlan(base=demo_base_path(), log_to=["excel"]))
    with pytest.raises(ConfigError, match="checkpoints = -1"):
        AuditPlan(checkpoints=-1)
    with pytest.raises(ConfigError, match="how many states to keep"):
        AuditPlan(config=AuditConfig(observer="training_run"))
    trainer = trainer_of(dataset, tokenizer, tmp_path, max_steps=1)
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", AuditPlan(checkpoints=3)))
    with pytest.raises(ConfigError, match="training takes only 1 step"):
        trainer.train()


PAIRS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 0], [5, 9, 0, 0, 0], [5, 6, 7, 3, 4], [5, 9, 2, 2, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "completion_mask": torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]),
}


def test_preference_pairs_are_one_row_each_and_survive_the_file(tokenizer: Any, tmp_path: Path) -> None:
    first, cut = rows_of(PAIRS)
    assert (first.ids.tolist(), first.spans) == ([5, 6, 7, 8], [(2, 4)])
    assert (first.rejected.ids.tolist(), first.rejected.spans) == ([5, 6, 7, 3, 4], [(2, 5)])
    assert len({first.key, cut.key, first.rejected.key}) == 3
    recorded = TrainedRows.open(tmp_path / "rows", step=0)
    recorded.record(0, PAIRS)
    read = TrainedRows.open(tmp_path / "rows", step=1)
    assert {key: row.all_ids for key, row in read.rows.items()} == {row.key: row.all_ids for row in (first, cut)}
    assert [row.rejected.spans for row in read.rows.values()] == [[(2, 5)], [(2, 5)]]
    found = scored_rows({"a": first, "b": cut}, tokenizer, vocab_size=100)
    assert len(found.texts) == len(found.texts.rejected) == 2
    encoded = [found.encoded[name] for name in (*found.texts.ids, *found.texts.rejected.ids)]
    assert [(text.ids.tolist(), text.start) for text in encoded] == [
        ([5, 6, 7, 8], 2), ([5, 9], 2), ([5, 6, 7, 3, 4], 2), ([5, 9, 2, 2, 2], 2)
    ]  # fmt: skip
    assert [text.reason for text in encoded] == [None, "0 token(s) with loss: too few to score", None, None]


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} {% endgeneration %}"
    "{% else %}{{ m.content }}: {% endif %}{% endfor %}"
)


def test_sft_trainer_with_packing_and_assistant_only_loss(tokenizer: Any, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the extra trl is not installed")
    texts = demo_texts().texts[:60]
    chats = [
        [{"role": role, "content": text[i * 60 : i * 60 + 60]} for i, role in enumerate(("user", "assistant") * 2)]
        for text in texts
    ]
    tokenizer = AutoTokenizer.from_pretrained(demo_base_path())
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, TEMPLATE
    train, held_out = hold_out(Dataset.from_dict({"messages": chats}), share=0.5)
    arguments = trl.SFTConfig(
        str(tmp_path / "sft"), packing=True, assistant_only_loss=True, max_length=256, max_steps=3, use_cpu=True,
        per_device_train_batch_size=2, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(demo_base_path(), dtype=torch.float32)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
    seen: list[dict[str, torch.Tensor]] = []
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (seen.append(inputs), step(model, inputs, *rest))[1]
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", LOSS))
    trainer.train()
    with_loss = {  # by the collator's own labels; each packed conversation by the ids around them
        tuple(zip(ids.tolist(), labels.tolist(), strict=True))
        for batch in seen
        for ids, labels in zip(
            *(
                batch[name][0].tensor_split(torch.nonzero(batch["position_ids"][0] == 0).flatten()[1:])
                for name in ("input_ids", "labels")
            ),
            strict=True,
        )
    }
    expected = sum(label != -100 for row in with_loss for _, label in row)
    records = pq.read_table(tmp_path / "audit" / "records.parquet").to_pydict()
    counts = json.loads((tmp_path / "audit" / "training.json").read_text("utf-8"))
    assert counts["tokens_with_loss"] == expected
    packed = [length for lengths in trainer.train_dataset["seq_lengths"] for length in lengths]
    assert len(packed) > len(trainer.train_dataset)
    unseen = counts["rows_of_the_dataset_never_trained_on_as_they_are"]
    assert unseen + counts["rows_trained"] == len(packed)
    scored = sum(n for n, label in zip(records["n_tokens"], records["label"], strict=True) if label == 1)
    short = sum(
        label == 1 and reason is not None for label, reason in zip(records["label"], records["reason"], strict=True)
    )
    assert expected - short <= scored <= expected
    assert counts["tokens_read"] > expected
    assert (tmp_path / "audit" / "report.html").is_file()


def dpo_trainer_of(tokenizer: Any, folder: Path, *, lora: bool = False, **options: Any) -> Any:
    trl = pytest.importorskip("trl", reason="the extra trl is not installed")
    texts, groups = demo_texts().texts[:64], demo_texts().groups[:64]
    pairs = {
        "prompt": [text[:60] for text in texts],
        "chosen": [text[60:160] for text in texts],
        "rejected": [text[160:300] for text in texts],
        "document": groups,
    }
    train, held_out = hold_out(Dataset.from_dict(pairs), share=0.5, group_column="document")
    arguments = {"max_steps": 3, "per_device_train_batch_size": 4, "save_strategy": "no", **options}
    return trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(demo_base_path(), dtype=torch.float32),
        args=trl.DPOConfig(
            str(folder), max_length=50, use_cpu=True, learning_rate=1e-3, report_to=[], bf16=False,
            gradient_checkpointing=False, **arguments,
        ),
        train_dataset=train, eval_dataset=held_out, processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True) if lora else None,
    )  # fmt: skip


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_dpo_trainer_is_audited_on_its_pairs(lora: bool, tokenizer: Any, tmp_path: Path) -> None:
    """The margin of each pair is that of the trainer's own log-probabilities, of the tokens that its collator keeps."""
    trainer = dpo_trainer_of(tokenizer, tmp_path / "dpo", lora=lora)
    for refused in (AuditPlan(checkpoints=1), AuditPlan(config=AuditConfig(thorough=True))):
        callback = AuditCallback(trainer, tmp_path / "audit", refused)
        trainer.add_callback(callback)
        with pytest.raises(ConfigError, match="not for preference pairs"):
            trainer.train()
        trainer.remove_callback(callback)
    trainer = dpo_trainer_of(tokenizer, tmp_path / "dpo", lora=lora)
    plan = AuditPlan(config=AuditConfig(attacks="premia_pair"))
    trainer.add_callback(AuditCallback(trainer, tmp_path / "audit", plan))
    trainer.train()
    margins = []
    model = trainer.model.eval()
    for batch in (trainer.data_collator([row]) for row in trainer.eval_dataset):
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad():
            logps = model(batch["input_ids"], labels=labels, fused_lm_head=True).log_probs.sum(1)
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or model, batch)
        margins.append((logps[0] - chosen - logps[1] + rejected).item())
    records = pq.read_table(tmp_path / "audit" / "records.parquet").to_pydict()
    assert any(len(row["prompt_ids"]) + len(row["rejected_ids"]) > 50 for row in trainer.eval_dataset), "some are cut"
    found = [score for score, label in zip(records["score_premia_pair"], records["label"], strict=True) if label == 0]
    assert sorted(found) == pytest.approx(sorted(margins), abs=0.06)
    counts = json.loads((tmp_path / "audit" / "training.json").read_text("utf-8"))
    assert counts["rows_trained"] == 12
    assert json.loads((tmp_path / "audit" / "results.json").read_text("utf-8"))["data"]["preference_pairs"]


def test_a_second_stage_is_audited_against_the_checkpoint_it_began_from(tokenizer: Any, tmp_path: Path) -> None:
    """Continual training: texts of the first stage are no members of the second one."""
    texts = demo_texts().texts
    first, second, unseen = texts[:40], texts[40:80], texts[80:120]

    def stage(base: str, members: Any, name: str, *, audited: bool) -> None:
        rows = [
            Dataset.from_dict({"input_ids": tokenizer(list(part), truncation=True, max_length=LENGTH)["input_ids"]})
            for part in (members, unseen)
        ]
        trainer = Trainer(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            TrainingArguments(
                str(tmp_path / "out"), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
                num_train_epochs=6, learning_rate=1e-3,
            ),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            train_dataset=rows[0], eval_dataset=rows[1], processing_class=tokenizer,
        )  # fmt: skip
        if audited:
            plan = AuditPlan(config=AuditConfig(attacks="difference"))
            trainer.add_callback(AuditCallback(trainer, tmp_path / name, plan))
        trainer.train()
        trainer.save_model(str(tmp_path / f"{name}-model"))

    stage(str(demo_base_path()), first, "first", audited=False)
    before = str(tmp_path / "first-model")
    stage(before, second, "second", audited=True)
    found = json.loads((tmp_path / "second" / "results.json").read_text("utf-8"))
    assert found["reference"]["source"].endswith("first-model")
    assert found["attacks"]["difference"]["auc"]["low"] > 0.8
    auc = {}
    for base in (str(demo_base_path()), before):
        pair = load_pair(tmp_path / "second-model", base, dtype="float32", device="cpu")
        scores = score_texts(pair, [*first, *unseen], attacks="difference", max_length=LENGTH)["difference"]
        auc[base] = roc_auc_score([1] * len(first) + [0] * len(unseen), scores)
    assert auc[str(demo_base_path())] > 0.65, "both stages together did learn them"
    assert auc[before] < 0.5, "the second stage did not: if anything it forgets them"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["training", "audit"])
@pytest.mark.parametrize("kind", ["trainer", "dpo"])
def test_a_killed_run_loses_nothing(kind: str, place: str, dataset: Dataset, tokenizer: Any, tmp_path: Path) -> None:
    # A whole epoch: if a run ended within one, Trainer makes another step when it is resumed after the last.
    options = {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}

    def train(name: str, **resumed: Any) -> Trainer:
        trainer: Any = (
            dpo_trainer_of(tokenizer, tmp_path / name, **options)
            if kind == "dpo"
            else trainer_of(dataset, tokenizer, tmp_path / name, **options)
        )
        attacks = "premia_pair" if kind == "dpo" else "loss"
        plan = AuditPlan(config=AuditConfig(attacks=attacks))
        trainer.add_callback(AuditCallback(trainer, tmp_path / f"{name}-audit", plan))
        if name == "killed" and not resumed:
            step, extract = trainer.training_step, TrainedPair.extract

            def dying_step(*args: Any, **rest: Any) -> Any:
                loss = step(*args, **rest)
                return die() if trainer.state.global_step == 3 else loss

            def dying_extract(*args: Any) -> Any:
                yield next(iter(extract(*args)))
                die()

            if place == "training":
                trainer.training_step = dying_step
            else:
                TrainedPair.extract = dying_extract  # of the child only
        trainer.train(**resumed)
        return trainer

    train("whole")
    killed(lambda: train("killed"))
    assert not (tmp_path / "killed-audit" / "results.json").exists()
    train("killed", resume_from_checkpoint=True)
    found = [tmp_path / f"{name}-audit" for name in ("whole", "killed")]
    figures = [json.loads((folder / "results.json").read_text("utf-8")) for folder in found]
    assert figures[0]["attacks"] == figures[1]["attacks"]
    assert len({(folder / "private" / "held-out").read_text("utf-8") for folder in found}) == 1
    counts = [json.loads((folder / "training.json").read_text("utf-8")) for folder in found]
    assert counts[1].pop("trained_tensors_without_change") == (None if place == "audit" else 0)
    assert counts[0].pop("trained_tensors_without_change") == 0
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_several_processes_are_refused_before_training(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "trainer.py"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "AuditCallback needs one process, because rows of others are not recorded" in done.stderr
    assert "train_runtime" not in done.stdout
    assert not (tmp_path / "out" / "audit").exists()
