"""A plan's figures are those of real models: counted by torch, weighed by the system, or computed by hand."""

import ctypes
import gc
import json
import re
from collections import deque
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, Llama4TextConfig, LlamaConfig, MixtralConfig
from typer.testing import CliRunner

from ltmia.auditing.cost import (
    GIB,
    LIBRARIES_BYTES,
    Setting,
    Work,
    count_checkpoint_flops,
    count_flops,
    count_memory,
    disk_bytes,
)
from ltmia.auditing.plan import Accelerators, _alternatives, plan_audit
from ltmia.cli.app import app
from ltmia.errors import ConfigError, LtmiaError, ModelError
from ltmia.models.loading import LoadOptions
from ltmia.models.pair import Pair
from ltmia.models.sizes import pair_shape
from ltmia.scoring.bench import BenchConfig, extraction_of, number_tokenizer, random_texts
from ltmia.scoring.extraction import extract_batches
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.update_attack import WeightsConfig

N, LENGTH, VOCAB = 2, 16, 96
SIZES = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": VOCAB}
CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=5, n_head=4, vocab_size=VOCAB, n_positions=64),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=80, tie_word_embeddings=False),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, num_local_experts=8),
    "llama4": Llama4TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, intermediate_size=48, intermediate_size_mlp=80, num_local_experts=8
    ),
}
OF_A_LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80
"""Weights of the matrices of a layer of this llama: queries and output, keys and values, three of the MLP."""
GIVEN = Accelerators(memory_gib=80, tflops=400)


def saved(folder, config, **changes):
    """Write a model's config.json, and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"model_type": config.model_type} | changes))
    return str(folder)


def setting(target, base=None, dtype=torch.float32, **work):
    pair = pair_shape(target, base, LoadOptions())
    return Setting(pair=pair, work=Work(**work), dtype=dtype, device_type="cpu")


@pytest.mark.parametrize("kind", CONFIGS)
def test_flops_and_parameters_are_those_of_a_real_model(kind, tmp_path):
    config = CONFIGS[kind]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.arange(N * LENGTH).view(N, LENGTH) % VOCAB, use_cache=False)
    head = 2 * N * LENGTH * VOCAB * 32
    found = setting(saved(tmp_path / kind, config), n_texts=N, max_length=LENGTH)
    flops = count_flops(found)
    # Rotations are matrix products too, and not counted.
    assert flops.layers + flops.attention == pytest.approx(2 * (counter.get_total_flops() - head), rel=2e-3)
    assert flops.head == 2 * 2 * N * (LENGTH - 1) * VOCAB * 32
    assert found.pair.target.n_parameters == sum(p.numel() for p in model.parameters())
    # These experts all read each token, in transformers.
    assert bool(found.pair.target.notes) is (kind == "llama4")


def test_figures_of_seven_billion_parameters_are_those_of_paper_and_pencil(tmp_path):
    config = LlamaConfig(dtype="bfloat16")  # its defaults are those of Llama 7B
    found = plan_audit(
        saved(tmp_path / "7b", config), None, Work(n_texts=10, max_length=100, observer="logprobs"), GIVEN
    )
    layer = 4 * 4096**2 + 3 * 4096 * 11_008
    assert found.n_parameters == 2 * (32 * (layer + 2 * 4096) + 4096 + 2 * 32_000 * 4096) == 2 * 6_738_415_616
    assert found.memory.weights == 2 * found.n_parameters
    assert found.flops.layers == 2 * 2 * 1000 * 32 * layer
    assert found.flops.attention == 2 * 10 * 32 * 4 * 100**2 * 4096
    assert found.flops.head == 2 * 2 * 990 * 32_000 * 4096
    assert found.seconds == pytest.approx((found.n_flops / 400e12 / 0.5, found.n_flops / 400e12 / 0.2))
    assert found.usable
    assert found.dtype == "bfloat16"


def test_an_adapter_shares_its_base_and_counts_its_own_matrices(tmp_path):
    base = saved(tmp_path / "base", CONFIGS["llama"])
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], base_model_name_or_path=base, task_type="CAUSAL_LM")
    lora.save_pretrained(tmp_path / "adapter")
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    n_base = sum(p.numel() for p in model.parameters())
    n_own = sum(p.numel() for p in get_peft_model(model, lora).parameters())
    found = setting(str(tmp_path / "adapter"), n_texts=N, max_length=LENGTH, observer="weights")
    full = setting(base, n_texts=N, max_length=LENGTH, observer="weights")
    assert found.pair.is_shared
    assert found.pair.target.n_parameters == n_own
    assert count_memory(found).weights == 4 * n_own
    assert count_memory(full).weights == 2 * 4 * n_base
    own = n_own - n_base
    assert count_flops(found).layers - count_flops(full).layers == 2 * N * LENGTH * own
    # Gradients of the base under an adapter need a pass of their own.
    once = count_flops(full)
    fewer = 2 * N * LENGTH * 2 * (full.n_coordinates - found.n_coordinates)
    assert count_flops(found).gradients + fewer > once.gradients + (once.layers + once.attention) / 2


@pytest.mark.parametrize(("thorough", "n_layers"), [(False, 4), (True, 5)])
def test_no_more_coordinates_are_counted_than_are_read_of_an_adapter(thorough, n_layers, tmp_path):
    base = saved(tmp_path / "base", CONFIGS["llama"])
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], base_model_name_or_path=base, task_type="CAUSAL_LM")
    lora.save_pretrained(tmp_path / "adapter")
    found = setting(str(tmp_path / "adapter"), n_texts=N, max_length=LENGTH, observer="weights", thorough=thorough)
    tuned = get_peft_model(AutoModelForCausalLM.from_config(CONFIGS["llama"]), lora)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    pair = Pair(target=tuned.eval(), tokenizer=number_tokenizer(VOCAB))
    config = WeightsConfig.of(thorough=thorough)
    real = choose_coordinates(pair, n_coordinates=config.n_coordinates, n_layers=config.n_layers, seed=0)
    assert len(real.layers) == n_layers
    assert disk_bytes(found)["gradients"] == N * 2 * len(config.points) * len(real)


def test_an_adapter_that_changes_its_base_needs_two_models(tmp_path):
    base = saved(tmp_path / "base", CONFIGS["llama"])
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", base_model_name_or_path=base)
    lora.save_pretrained(tmp_path / "adapter")
    found = pair_shape(str(tmp_path / "adapter"), None, LoadOptions())
    assert not found.is_shared
    assert "pissa" in found.notes[0]


def test_the_weights_observer_adds_its_disk_memory_and_passes(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    plain, weights = (
        plan_audit(target, None, Work(n_texts=3000, max_length=LENGTH, observer=observer), GIVEN)
        for observer in ("logprobs", "weights")
    )
    assert weights.disk_bytes - plain.disk_bytes == 3000 * 2 * 2 * 4 * OF_A_LAYER, "there are no more coordinates"
    assert weights.host_bytes - plain.host_bytes == 16 * (2 * 3000) ** 2
    # Four of five layers and the head's gradient once, and the logits once more.
    back = 4 / 5 * plain.flops.layers + 2 * plain.flops.head + 2 * 4 / 5 * plain.flops.attention
    assert weights.flops.gradients == pytest.approx(back + 2 * 3000 * LENGTH * 2 * 4 * OF_A_LAYER, rel=1e-6)


def test_a_thorough_reading_goes_through_all_layers_at_three_points(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    work = Work(n_texts=500, max_length=LENGTH, observer="weights")
    quick, thorough = (plan_audit(target, None, replace(work, thorough=x), GIVEN) for x in (False, True))
    n_coordinates = 5 * OF_A_LAYER
    assert thorough.disk_bytes - quick.disk_bytes == 500 * 2 * (3 * n_coordinates - 2 * 4 * OF_A_LAYER)
    # At each of three points, all layers and the head's gradient once, and the logits once more; one pass more.
    flops = quick.flops
    back = 1.5 * (flops.layers + 2 * flops.attention + 2 * flops.head) + (flops.layers + flops.attention) / 2
    assert thorough.flops.gradients == pytest.approx(back + 3 * 500 * LENGTH * 2 * n_coordinates, rel=1e-6)
    with pytest.raises(ConfigError, match="`thorough=True` reads more of the weights"):
        Work(thorough=True, observer="logprobs")
    with pytest.raises(ConfigError, match="`thorough=True` reads more of the weights"):
        Work(thorough=True, sequential=True)


def test_a_thorough_plan_that_does_not_fit_names_what_does(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    work = Work(n_texts=50_000, max_length=LENGTH, observer="weights", thorough=True, batch_size=1)
    plan = plan_audit(target, None, work, replace(GIVEN, memory_gib=1e-3))
    assert not plan.usable
    names = [name for name, _ in _alternatives(setting(target, n_texts=50, observer="weights", thorough=True))]
    assert "leaving out `thorough`" in names, "it has no flag to switch it off"
    others = [name for name in names if "logprobs" in name or "sequential" in name]
    assert others
    assert all(name.endswith(" without `thorough`") for name in others), "they do not go with it"


def test_each_checkpoint_adds_a_pass_with_gradients(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    weights, run = (
        plan_audit(target, None, Work(n_texts=3000, max_length=LENGTH, observer=observer), GIVEN)
        for observer in ("weights", "training_run")
    )
    assert run.memory.weights == 1.5 * weights.memory.weights, "one more model like the target"
    flops = weights.flops
    one = (flops.layers + flops.attention + flops.head + flops.gradients) / 2 + flops.solve
    said = run.findings[-1].sentence
    assert (
        f"each checkpoint adds {one:.1e} FLOPs, {100 * one / flops.total:.3g} % of the time above, and 0.24 GiB" in said
    )


def test_a_checkpoint_of_a_thorough_reading_is_one_point_and_a_regression_on_two(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    run = setting(target, n_texts=300, max_length=LENGTH, observer="training_run", thorough=True)
    whole, each = count_flops(run), count_checkpoint_flops(run)
    passes = (whole.layers + whole.attention) // 2  # the halfway point needs one of its own
    assert each.gradients == pytest.approx((whole.gradients - passes) / 3)
    assert each.solve == 2 * 600**2 * 5 * OF_A_LAYER + 600**3
    assert whole.solve == 2 * 900**2 * 5 * OF_A_LAYER + 900**3


def test_memory_is_what_the_system_says(tmp_path):
    config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
                         vocab_size=8192, bos_token_id=None, eos_token_id=None)  # fmt: skip
    work = BenchConfig(vocab_size=8192, n_texts=16, n_tokens=128, batch_size=16)
    taken_by_pair(config, work)  # the first pair loads and compiles what is needed once
    real = taken_by_pair(config, work)
    planned = setting(saved(tmp_path / "llama", config), n_texts=16, max_length=128, batch_size=16,
                      observer="logprobs")  # fmt: skip
    ours = count_memory(planned).total - LIBRARIES_BYTES
    assert 0.8 < ours / real < 1.25, (ours, real)


def taken_by_pair(config, work):
    """Return the bytes that loading and reading with two models take, at most at once."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the models fit into what was freed before
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    models = [AutoModelForCausalLM.from_config(config).eval() for _ in range(2)]
    pair = Pair(target=models[0], reference=models[1], tokenizer=number_tokenizer(config.vocab_size))
    deque(extract_batches(pair, random_texts(work), extraction_of(work)), maxlen=0)
    return resident_bytes("VmHWM") - before


def resident_bytes(name):
    return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


def test_what_does_not_fit_is_a_problem_and_the_cure_named_first_is_enough(tmp_path):
    target = saved(tmp_path / "2b", LlamaConfig(dtype="float32", num_hidden_layers=8))
    for gib, cure in {20: None, 10: "`dtype=bfloat16` fits", 6: "`sequential=True` with", 2: "no option"}.items():
        found = plan_audit(target, None, Work(observer="logprobs"), Accelerators(memory_gib=gib, tflops=100))
        cures = [finding.cure for finding in found.findings if finding.level == "problem"]
        assert found.usable is (found.memory_bytes <= gib * GIB) is (cure is None)
        assert [cure] == [said[: len(cure)] for said in cures] if cure else not cures
    weights = plan_audit(target, None, Work(), Accelerators(memory_gib=20, tflops=100))
    assert next(said.cure for said in weights.findings if said.level == "problem").startswith("`batch_size=1` fits")
    for gib, work in {10: Work(observer="logprobs"), 6: Work(sequential=True, batch_size=1)}.items():
        assert plan_audit(target, None, work, Accelerators(memory_gib=gib, tflops=100), dtype="bfloat16").usable


def test_the_device_at_hand_is_measured(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    found = plan_audit(target, None, Work(max_length=32), device="cpu")
    # A tiny model on any processor: between a microsecond and ten milliseconds a token.
    assert 1e-6 < found.seconds[0] / found.n_tokens < found.seconds[1] / found.n_tokens < 1e-2
    assert found.memory.libraries


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0: expected 1 to 10,000"),
        ({"num_hidden_layers": 10**9}, "expected 1 to 10,000"),
        ({"vocab_size": 0}, "a size in it is 0"),
        ({"hidden_size": -8}, "cannot be loaded"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
        ({"max_position_embeddings": -5}, "-5 as the longest input"),
        ({"max_position_embeddings": 1}, "1 as the longest input"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "a token uses 9 experts, of 8"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
    ],
)
def test_an_impossible_config_is_refused(changes, said, tmp_path):
    folder = saved(tmp_path / "x", CONFIGS["llama"], **changes)
    with pytest.raises(ModelError, match=re.escape(said)) as error:
        plan_audit(folder, None, Work(), GIVEN)
    assert folder in str(error.value)


def test_parts_with_too_many_layers_are_refused_at_once(tmp_path):
    text = {"model_type": "gemma3_text", **SIZES}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {"num_hidden_layers": 10**9}})
    )
    with pytest.raises(ModelError, match=r"vision_config\.num_hidden_layers = 1000000000: expected 1 to 10,000"):
        plan_audit(str(tmp_path), None, Work(), GIVEN)


class Largest(TorchDispatchMode):
    """Measures the largest tensor that is made."""

    def __init__(self, model):
        super().__init__()
        self.n_bytes, self.weights = 0, {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() not in self.weights:
                self.n_bytes = max(self.n_bytes, part.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("kind", ["llama", "mixtral", "llama4"])
def test_the_largest_tensor_of_a_pass_fits_into_the_planned_activations(kind, tmp_path):
    config = copy(CONFIGS[kind])
    config.num_experts_per_tok = 8
    model = AutoModelForCausalLM.from_config(config).eval()
    with Largest(model) as largest, torch.no_grad():
        model.get_decoder()(torch.arange(N * LENGTH).view(N, LENGTH) % VOCAB, use_cache=False)
    planned = setting(saved(tmp_path / kind, config), n_texts=N, max_length=LENGTH, batch_size=N)
    assert 4 * N * LENGTH * 80 <= largest.n_bytes <= count_memory(planned).activations


def test_virtual_tokens_are_named(tmp_path):
    base = saved(tmp_path / "base", CONFIGS["llama"])
    PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM", base_model_name_or_path=base).save_pretrained(
        tmp_path / "adapter"
    )
    assert "5 virtual tokens" in pair_shape(str(tmp_path / "adapter"), None, LoadOptions()).notes[0]


def test_what_has_no_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_audit(str(tmp_path), None, Work(), GIVEN)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="GGUF file keeps its sizes"):
        plan_audit(str(tmp_path / "model.gguf"), None, Work(), GIVEN)


def test_impossible_work_is_refused(tmp_path):
    for wrong in ({"n_texts": 0}, {"max_length": 1}, {"sequential": True, "observer": "weights"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Work(**wrong)
    with pytest.raises(ConfigError, match="tflops = nan"):
        Accelerators(memory_gib=1, tflops=float("nan"))


def test_the_command_prints_a_plan_and_refuses_what_it_would_ignore(tmp_path):
    target = saved(tmp_path / "llama", CONFIGS["llama"])
    given = ["--device-memory", "80", "--device-tflops", "400"]
    done = CliRunner().invoke(app, ["doctor", target, "--plan", "--texts", "7", *given, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["n_tokens"], found["usable"]) == (7 * 512, True)
    assert found["n_flops"] == sum(found["flops"].values())
    shown = CliRunner().invoke(app, ["doctor", target, "--plan", "--device-memory", "0.01", "--device-tflops", "1"])
    assert shown.exit_code == 2
    assert "problem: memory in float32" in shown.output
    for wrong in (["--texts", "7"], ["--plan", "--devices", "8"], ["--plan", *given, "--device", "cpu"]):
        refused = CliRunner().invoke(app, ["doctor", target, *wrong])
        assert isinstance(refused.exception, LtmiaError), refused.output
