"""DP-SGD: per-text gradients, the budget, resumption. Needs the extra `dp`."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ltmia.cli.app import app
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError, ModelError
from ltmia.features.store import FeatureStore
from ltmia.finetuning import finetune as finetuning
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.privacy import PRIVACY_FILE, DpConfig
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import make_trainer, save_model
from ltmia.finetuning.training_rows import RightPadding, training_rows
from ltmia.lab.run import run_lab

pytest.importorskip("opacus", reason='Opacus is not installed: pip install "ltmia[dp]" to run these tests')

from ltmia.finetuning import dp_sgd as private

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
TEXTS = [f"Crate {i * 37 % 101} of the cargo holds {i} lamps and a letter." * (1 + i % 2) for i in range(40)]
TOKENIZER = train_tokenizer(TEXTS, 300)
DP = DpConfig(epsilon=8.0, delta=1e-3)
CONFIG = FinetuneConfig(epochs=2, learning_rate=3e-3, batch_size=8, max_length=24, dp=DP)
ROWS = training_rows(TOKENIZER, TEXTS, 24)


def small(model_type="gpt2"):
    return build_base(TinyConfig(model_type=model_type, vocab_size=300, hidden_size=32, n_layers=2, n_heads=2), seed=0)


def config(**changes):
    return FinetuneConfig(**({name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__} | changes))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_private_finetuning_states_what_it_spent(model_type, lora, tmp_path):
    save_model(small(model_type), TOKENIZER, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    outcome = finetune(base, TOKENIZER, TEXTS, config(lora=lora), tmp_path / "target", TEXTS[:4])
    spent = json.loads((tmp_path / "target" / PRIVACY_FILE).read_text("utf-8"))
    assert 7.9 <= spent["epsilon"] <= 8.0
    assert spent["noise_multiplier"] > 0.3
    assert spent["n_steps"] == 10
    assert spent["sample_rate"] == pytest.approx(8 / 40)
    assert outcome.privacy.epsilon == spent["epsilon"]
    assert outcome.validation_loss > 0
    assert not hasattr(outcome.model, "autograd_grad_sample_hooks")


def test_one_step_moves_by_no_more_than_the_clipped_gradients_and_the_noise():
    # With almost no noise and a tiny clipping norm, the step is the mean of unit vectors times that norm.
    privacy = private.plan_privacy(DpConfig(epsilon=1e6, delta=1e-3, max_grad_norm=1e-3), 40, 8, 1)
    model = small()
    collate = private.private_collate(model, RightPadding(0))
    batch = collate([row.tensors() for row in ROWS[:8]])
    model.eval()
    total = [torch.zeros_like(weight) for weight in model.parameters()]
    for row in ROWS[:8]:
        loss = private.text_loss(model, collate([row.tensors()]))
        own = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.norm() for g in own]).norm()
        total = [t + g * min(1.0, privacy.max_grad_norm / float(norm)) for t, g in zip(total, own, strict=True)]
    with private.per_text_gradients(model, collate, ROWS):
        for module in model.modules():
            module.training = bool(list(module.parameters(recurse=False)))
        optimizer = private.DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=8,
        )
        before = [weight.detach().clone() for weight in model.parameters()]
        private.text_loss(model, batch).backward()
        optimizer.step()
    for old, new, wanted in zip(before, model.parameters(), total, strict=True):
        torch.testing.assert_close(old - new, wanted / 8, rtol=2e-2, atol=2e-7)


def test_the_noise_is_what_the_accountant_asks_for_and_grows_with_privacy():
    noises = [
        private.plan_privacy(DpConfig(epsilon=e, delta=1e-3), 40, 8, 2).noise_multiplier for e in (1.0, 4.0, 16.0)
    ]
    assert noises[0] > noises[1] > noises[2] > 0
    with pytest.raises(ConfigError, match="1 / 40 texts"):
        private.plan_privacy(DpConfig(epsilon=1.0, delta=0.1), 40, 8, 2)


def test_batches_are_drawn_alike_for_a_seed_and_an_empty_one_teaches_nothing():
    privacy = private.plan_privacy(DP, 40, 8, 20)
    drawn = private.draw_batches(ROWS, privacy, seed=1)
    assert list(drawn.batches) == list(private.draw_batches(ROWS, privacy, seed=1).batches)
    assert len({len(batch) for batch in drawn.batches}) > 3, "sizes vary: each text is drawn alone"
    empty = private.private_collate(small(), RightPadding(0))([{"rows": []}])
    assert (empty["labels"] == -100).all()
    assert private.text_loss(small(), empty).item() == 0


@pytest.mark.parametrize("model_type", ["opt", "mamba"])
def test_architectures_that_opacus_does_not_support_are_refused(model_type):
    with pytest.raises(ModelError, match=f"{model_type}: .*Opacus"):
        finetune(small(model_type), TOKENIZER, TEXTS, CONFIG)


def test_a_killed_private_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    save_model(small(), TOKENIZER, tmp_path / "base")

    def run(name):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        return finetune(base, TOKENIZER, TEXTS, config(checkpoint_minutes=1e-9), tmp_path / name).model

    class Killed(Exception):
        pass

    def doomed(*args, **kwargs):
        trainer = make_trainer(*args, **kwargs)
        step = trainer.training_step

        def training_step(*args):
            if trainer.state.global_step == 6:
                raise Killed
            return step(*args)

        trainer.training_step = training_step
        return trainer

    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "make_trainer", doomed)
        with pytest.raises(Killed):
            run("killed")
    for (name, weight), other in zip(whole.state_dict().items(), run("killed").state_dict().values(), strict=True):
        assert torch.equal(weight, other), name


def test_impossible_settings_are_refused():
    for settings in ({"epsilon": 0.0, "delta": 1e-5}, {"epsilon": 1.0, "delta": 0.0}):
        with pytest.raises(ConfigError, match="expected"):
            DpConfig(**settings)
    with pytest.raises(ConfigError, match="not possible under dp"):
        config(keep="best")


def test_the_labs_stores_say_what_was_spent(tmp_path):
    text = SMOKE.read_text("utf-8").replace("max_length = 64", "max_length = 64\ndp = { epsilon = 4.0, delta = 1e-3 }")
    text = text[: text.index("[[grid]]")] + '[[combinations]]\nbase = "demo"\ncorpus = "late"\nregime = "quick"\n'
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    status = run_lab(tmp_path / "recipe.toml", tmp_path / "lab")
    assert not status.failed, status.failed
    spent = FeatureStore(tmp_path / "lab" / "stores" / "demo.late.quick").manifest["privacy"]
    assert 3.9 <= spent["epsilon"] <= 4.0
    assert spent["delta"] == 1e-3


def test_the_command_states_what_it_spent(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(demo_texts().texts[:8]), "utf-8")
    words = ["finetune", str(demo_base_path()), "--texts", str(tmp_path / "texts.txt"), "--epochs", "1", "--lora"]
    done = CliRunner().invoke(app, [*words, "--epsilon", "4", "--max-length", "16", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    spent = json.loads((tmp_path / "out" / PRIVACY_FILE).read_text("utf-8"))
    assert 3 < spent["epsilon"] <= 4
    assert spent["delta"] == pytest.approx(1 / 80)
    assert "at delta 0.013" in done.output
