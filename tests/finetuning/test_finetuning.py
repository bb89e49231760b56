"""Fine-tuning: rows and labels, full and LoRA on every architecture, folders, resumption."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
from transformers.utils.quantization_config import GgufConfig

from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError, DataError, ModelError
from ltmia.finetuning import finetune as finetuning
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.tiny import ARCHITECTURES, END_ID, TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import make_trainer, save_model
from ltmia.finetuning.training_rows import RightPadding, TextRow, TokenRows, training_rows
from ltmia.folders import hold_folder, work_path
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.sources import find_base, find_source

TEXTS = [f"Crate {i * 37 % 101} of the cargo holds {i} lamps and a letter." for i in range(40)]
OTHERS = [f"Crate {i * 53 % 101} of the cargo holds {i} lamps and a letter." for i in range(10)]
TOKENIZER = train_tokenizer(TEXTS, 300)
CONFIG = FinetuneConfig(epochs=2, learning_rate=3e-3, batch_size=8, max_length=24, autocast=False)


def small(model_type="gpt2"):
    shape = TinyConfig(model_type=model_type, vocab_size=300, hidden_size=32, n_layers=3, n_heads=2)
    return build_base(shape, seed=0)


def saved_base(folder, model_type="gpt2"):
    save_model(small(model_type), TOKENIZER, folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def ids_of(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def same_weights(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    return all(torch.equal(weight, other) for (_, weight), other in pairs)


def test_rows_end_with_eos_unless_cut_off():
    long, short = TEXTS[0] * 5, "the lamps of the cargo"
    n = len(ids_of(short))
    rows = training_rows(TOKENIZER, [long, short, "", "\ud800"], n + 1)
    assert [row.ids for row in rows] == [ids_of(long)[: n + 1], [*ids_of(short), END_ID], [*ids_of("?"), END_ID]]
    assert training_rows(TOKENIZER, [short], n) == [TextRow(ids_of(short))]


def test_labels_follow_the_mask_and_keep_the_eos_that_is_also_padding():
    batch = RightPadding(END_ID)([TextRow(ids).tensors() for ids in ([5, 6, 0], [7, 0])])
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 0], [-100, 0, -100]]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_losses_are_nats_per_predicted_token(model_type):
    # A rate too small to change anything: the training loss is then the untouched model's too.
    still = {"learning_rate": 1e-12, "epochs": 1, "batch_size": 64}
    model = small(model_type)
    config = FinetuneConfig(**(vars_of(CONFIG) | still))
    outcome = finetune(model, TOKENIZER, OTHERS, config, validation=OTHERS)
    total, n_predicted = 0.0, 0
    with torch.no_grad():
        for row in training_rows(TOKENIZER, OTHERS, config.max_length):
            logs = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0], dim=-1)
            total -= logs[range(len(row) - 1), row.ids[1:]].sum().item()
            n_predicted += len(row) - 1
    assert outcome.validation_loss == pytest.approx(total / n_predicted, rel=1e-4)
    assert outcome.train_loss == pytest.approx(total / n_predicted, rel=1e-3)


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_two_processes_do_not_fine_tune_into_one_folder(tmp_path):
    out = tmp_path / "tuned"
    with hold_folder(work_path(out)), pytest.raises(ConfigError, match="another run is at work here"):
        finetune(saved_base(tmp_path / "base"), TOKENIZER, TEXTS, CONFIG, out)
    assert not out.exists()


def test_full_finetuning_learns_counts_and_writes_a_plain_folder(tmp_path):
    model = small("llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    out = tmp_path / "target"
    outcome = finetune(model, TOKENIZER, [*TEXTS, "", ""], CONFIG, out, OTHERS)
    assert outcome.train_loss < 5
    assert outcome.validation_loss < 5
    assert outcome.n_left_out == 2
    assert outcome.tokens_seen == 2 * sum(map(len, training_rows(TOKENIZER, TEXTS, 24)))
    assert outcome.path == out
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert outcome.model is model
    assert not any(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert same_weights(AutoModelForCausalLM.from_pretrained(out), model)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == TOKENIZER.get_vocab()
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_lora_reaches_every_architecture_but_not_its_head(model_type, tmp_path):
    base = saved_base(tmp_path / "base", model_type)
    config = FinetuneConfig(**{**vars_of(CONFIG), "lora": True, "lora_rank": 4, "epochs": 1, "learning_rate": 1e-2})
    outcome = finetune(base, TOKENIZER, TEXTS, config, tmp_path / "adapter")
    tuned = outcome.model
    assert isinstance(tuned, PeftModel)
    trained = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert trained
    assert not [name for name in trained if "head" in name or "embed" in name]
    assert all(weight.abs().sum() > 0 for name, weight in trained.items()), "an adapter is dead"

    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert Path(named["base_model_name_or_path"]) == tmp_path / "base"
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    ids = torch.tensor([ids_of(TEXTS[0])])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, tuned(input_ids=ids).logits)
        with tuned.disable_adapter():
            reference = tuned(input_ids=ids).logits
        assert (again(input_ids=ids).logits - reference).abs().max() > 1e-4


def test_same_seed_same_weights_and_another_seed_others():
    first, second, third = small(), small(), small()
    finetune(first, TOKENIZER, TEXTS, CONFIG)
    finetune(second, TOKENIZER, TEXTS, CONFIG)
    finetune(third, TOKENIZER, TEXTS, FinetuneConfig(**{**vars_of(CONFIG), "seed": 1}))
    assert same_weights(first, second)
    assert not same_weights(first, third)


@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_the_best_epoch_is_kept_whole(model_type):
    settings = vars_of(CONFIG) | {"epochs": 6, "learning_rate": 3e-2}
    strange = ["zq " * 8, "xv " * 8]

    def run(**changes):
        config = FinetuneConfig(**(settings | changes))
        return finetune(small(model_type), TOKENIZER, TEXTS, config, validation=strange)

    by_epoch = [run(epochs=epochs).validation_loss for epochs in range(1, 7)]
    assert min(by_epoch) < by_epoch[-1], "the last epoch must not be the best, or nothing is tested"
    assert run(keep="best").validation_loss == pytest.approx(min(by_epoch), rel=1e-5)
    with pytest.raises(ConfigError, match="needs validation texts"):
        finetune(small(), TOKENIZER, TEXTS, FinetuneConfig(keep="best"))


class Killed(Exception):
    """Stands for a kill in the middle of training."""


class KillAt(TrainerCallback):
    """Ends training abruptly."""

    def on_step_end(self, _args, state, _control, **_kwargs):
        if state.global_step == 8:
            raise Killed


def make_doomed(*args, **kwargs):
    trainer = make_trainer(*args, **kwargs)
    trainer.add_callback(KillAt())
    return trainer


@pytest.mark.parametrize(
    ("model_type", "keep", "lora"),
    [
        ("gpt2", "best", True),
        ("gpt_neox", "last", False),  # it renames weights in files
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product(["gpt2", "gpt_neox"], ["last", "best"], [False, True])
            if case not in {("gpt2", "best", True), ("gpt_neox", "last", False)}
        ),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(model_type, keep, lora, tmp_path, monkeypatch):
    more = {"lora": lora, "keep": keep, "checkpoint_minutes": 1e-9, "schedule": "linear"}
    config = FinetuneConfig(**(vars_of(CONFIG) | more))
    saved_base(tmp_path / "base", model_type)

    def run(name):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        return finetune(base, TOKENIZER, TEXTS, config, tmp_path / name, OTHERS)

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "make_trainer", make_doomed)
        with pytest.raises(Killed):
            run("killed")
    assert not (tmp_path / "killed").exists()
    resumed = run("killed")
    assert same_weights(whole.model, resumed.model)
    assert resumed.train_loss == pytest.approx(whole.train_loss, abs=1e-6)
    assert resumed.validation_loss == pytest.approx(whole.validation_loss, abs=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_a_truncated_checkpoint_is_passed_over(tmp_path, monkeypatch):
    config = FinetuneConfig(**(vars_of(CONFIG) | {"checkpoint_minutes": 1e-9}))
    whole = finetune(small(), TOKENIZER, TEXTS, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "make_trainer", make_doomed)
        with pytest.raises(Killed):
            finetune(small(), TOKENIZER, TEXTS, config, tmp_path / "killed")
    checkpoints = sorted((tmp_path / ".killed.work").glob("checkpoint-*"))
    assert len(checkpoints) == 2
    for name, checkpoint in zip(("model.safetensors", "optimizer.pt"), checkpoints, strict=True):
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-50])
    assert same_weights(whole.model, finetune(small(), TOKENIZER, TEXTS, config, tmp_path / "killed").model)


def test_only_its_own_files_are_replaced_and_other_settings_need_a_word(tmp_path):
    out = tmp_path / "target"
    base = saved_base(tmp_path / "base")
    finetune(base, TOKENIZER, TEXTS, CONFIG, out)
    (out / "thesis.txt").write_text("years")
    before = (out / "model.safetensors").read_bytes()
    other = FinetuneConfig(**(vars_of(CONFIG) | {"seed": 1}))
    with pytest.raises(ConfigError, match=r"other settings: seed \(0 there, 1 now\)"):
        finetune(saved_base(tmp_path / "again"), TOKENIZER, TEXTS, other, out)
    with pytest.raises(ConfigError, match=r"other settings: texts\."):
        finetune(saved_base(tmp_path / "again"), TOKENIZER, OTHERS, CONFIG, out)
    with pytest.raises(ConfigError, match=r"is read here"):
        finetune(AutoModelForCausalLM.from_pretrained(out), TOKENIZER, TEXTS, other, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    finetune(saved_base(tmp_path / "again"), TOKENIZER, TEXTS, other, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert (out / "thesis.txt").read_text() == "years"


def test_a_model_with_gguf_settings_is_trained_and_saved(tmp_path):
    model = small("llama")
    model.hf_quantizer = GgufHfQuantizer(GgufConfig(), pre_quantized=True)
    model.config.quantization_config = GgufConfig()
    model.is_quantized = True
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "refused")
    finetune(model, TOKENIZER, TEXTS, CONFIG, tmp_path / "target")
    assert "quantization_config" not in json.loads((tmp_path / "target/config.json").read_text())


@pytest.mark.parametrize("lora", [False, True])
def test_a_fine_tune_names_its_base(lora, tmp_path, monkeypatch):
    """So that nobody need say what it was made from, wherever the command runs."""
    saved_base(tmp_path / "base", "llama")
    monkeypatch.chdir(tmp_path)
    model, _ = load_model("base", LoadOptions(dtype="float32", device="cpu"))
    config = FinetuneConfig(**(vars_of(CONFIG) | {"lora": lora, "epochs": 1, "learning_rate": 1e-2}))
    finetune(model, TOKENIZER, TEXTS, config, tmp_path / "tuned")
    monkeypatch.chdir("/")
    pair = load_pair(tmp_path / "tuned", dtype="float32", device="cpu")
    assert pair.reference_origin.source == str(tmp_path / "base")


@pytest.mark.parametrize("lora", [False, True])
def test_a_fine_tune_of_a_hub_model_names_its_commit(lora, tmp_path):
    base = saved_base(tmp_path / "base", "llama")
    base.name_or_path, base.config._commit_hash = "org/base", "2" * 40
    config = FinetuneConfig(**(vars_of(CONFIG) | {"lora": lora, "epochs": 1, "learning_rate": 1e-2}))
    finetune(base, TOKENIZER, TEXTS, config, tmp_path / "tuned")
    assert find_base(find_source(str(tmp_path / "tuned"))) == f"org/base@{'2' * 40}"


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of 2 training texts"):
        finetune(small(), TOKENIZER, ["", ""], CONFIG)
    with pytest.raises(DataError, match="none of 1 validation"):
        finetune(small(), TOKENIZER, TEXTS, CONFIG, validation=[""])
    lora = FinetuneConfig(**(vars_of(CONFIG) | {"lora": True}))
    with pytest.raises(ConfigError, match="must name its base"):
        finetune(small(), TOKENIZER, TEXTS, lora, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", float("nan")),
        ("batch_size", -1),
        ("max_length", 1),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
    ],
)
def test_impossible_settings_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        FinetuneConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("schedule", "cosine"), ("keep", "first")])
def test_unknown_choices_name_the_field(field, value):
    config = FinetuneConfig()
    object.__setattr__(config, field, value)  # past the type checks that run in tests only
    with pytest.raises(ConfigError, match=field):
        config.__post_init__()


def test_adapters_do_not_depend_on_the_callers_generator():
    torch.manual_seed(1)
    first = add_lora(small(), rank=4, alpha=8, seed=0)
    torch.manual_seed(2)
    assert same_weights(first, add_lora(small(), rank=4, alpha=8, seed=0))


def test_rows_are_a_dataset():
    rows = TokenRows([TextRow([1, 2]), TextRow([3])])
    assert len(rows) == 2
    assert rows[1]["input_ids"].tolist() == [3]


def test_a_training_that_diverges_is_refused_and_writes_nothing(tmp_path):
    options = LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(str(demo_base_path()), options)
    tokenizer = load_tokenizer(str(demo_base_path()), options)
    config = FinetuneConfig(learning_rate=1e30, epochs=2, max_length=32)
    with pytest.raises(ModelError, match="diverged"):
        finetune(model, tokenizer, list(demo_texts().texts[:32]), config, tmp_path / "target")
    assert not (tmp_path / "target").exists()
