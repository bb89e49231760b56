"""A plan for spread models counts their weights where accelerate puts them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ltmia.auditing.cost import GIB, Setting, Work, count_memory
from ltmia.auditing.plan import Accelerators, plan_audit
from ltmia.auditing.spread_cost import count_spread, spread_memory
from ltmia.errors import ConfigError
from ltmia.models.loading import LoadOptions, load_pair
from ltmia.models.sizes import pair_shape
from ltmia.models.spread import FREE_SHARE, memory_limits, named_weights

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=160, num_hidden_layers=6, num_attention_heads=4, vocab_size=512,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
SEVEN = LlamaConfig(dtype="bfloat16")
"""Llama 2 7B."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from ltmia.finetuning.tiny import train_tokenizer

    folder = tmp_path_factory.mktemp("planned")
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(folder)
    train_tokenizer(["Some words of a tokenizer."], 300).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def seven(tmp_path):
    SEVEN.save_pretrained(tmp_path)
    return str(tmp_path)


def setting(folder, **work):
    pair = pair_shape(folder, None, LoadOptions())
    return Setting(pair=pair, work=Work(**work), dtype=torch.float32, device_type="cpu")


def test_bytes_on_disk_are_those_of_a_real_run(folder):
    planned = count_spread(setting(folder), "cpu=600KB")
    pair = load_pair(folder, folder, dtype="float32", device_map="cpu=600KB")
    sizes = {"cpu": 0, "meta": 0}
    for model in (pair.target, pair.reference):
        for weight in named_weights(model).values():
            sizes[weight.device.type] += 4 * weight.numel()
    assert planned.cpu + planned.disk == sizes["cpu"] + sizes["meta"]
    # Real limits are reached in steps of whole layers, and there must be room for the one that is loaded.
    layer = 4 * sum(weight.numel() for weight in pair.target.model.layers[0].parameters())
    assert 0 <= sizes["meta"] - planned.disk <= 2 * 2 * layer
    assert planned.offloaded == planned.disk
    assert planned.host_bytes == 0


def test_one_model_at_a_time_takes_half_and_is_loaded_as_often(folder):
    together = count_spread(setting(folder), "cpu=600KB")
    alone = count_spread(setting(folder, sequential=True), "cpu=600KB")
    assert (alone.cpu, alone.disk) == (together.cpu // 2, together.disk // 2)
    assert alone.n_passes * alone.offloaded == together.n_passes * together.offloaded


def test_the_memory_of_a_spread_run_is_less_by_what_waits(folder):
    plain = setting(folder)
    spread = count_spread(plain, "cpu=600KB")
    whole, less = count_memory(plain), spread_memory(count_memory(plain), plain, spread)
    head = 4 * 512 * 64
    assert whole.weights - less.weights == spread.disk - 3 * head, "both heads, and the largest matrix, an embedding"
    assert spread_memory(whole, plain, count_spread(plain, "cpu=1GiB")).weights == whole.weights


def test_several_accelerators_share_the_weights_and_compute_in_turn(seven):
    one, four = (
        plan_audit(
            seven,
            None,
            Work(observer="logprobs"),
            Accelerators(memory_gib=24, tflops=100, n_devices=n),
            device_map="auto",
        )
        for n in (1, 4)
    )
    size, free = 2 * four.n_parameters // 2, 24 * GIB
    assert four.memory.weights == 2 * size // 4
    assert four.usable
    assert one.memory.weights > FREE_SHARE * free
    assert one.seconds == four.seconds
    assert one.host_bytes - four.host_bytes == pytest.approx(size - FREE_SHARE * (free - size), rel=0.001)
    assert any("one accelerator computes at a time" in finding.sentence for finding in four.findings)
    assert any("are loaded anew in each of 63 passes" in finding.sentence for finding in one.findings)


def test_offloaded_weights_leave_no_gradients(seven):
    small = Accelerators(memory_gib=24, tflops=100)
    auto, must = (plan_audit(seven, None, Work(observer=o), small, device_map="auto") for o in ("auto", "weights"))
    assert auto.flops.gradients == 0
    assert auto.usable
    said = [finding.sentence for finding in must.findings if finding.level == "problem"]
    assert "`observer=weights` needs all weights on devices that compute" in said
    thorough = plan_audit(seven, None, Work(thorough=True), small, device_map="auto")
    assert "`thorough=True` needs all weights" in " ".join(one.sentence for one in thorough.findings)
    assert not thorough.usable
    large = Accelerators(memory_gib=80, tflops=100, n_devices=2)
    assert plan_audit(seven, None, Work(), large, device_map="auto").flops.gradients > 0


def test_what_does_not_fit_although_spread_has_a_cure(folder):
    found = plan_audit(folder, None, Work(max_length=32), Accelerators(memory_gib=0.001, tflops=1), device_map="auto")
    (problem,) = (finding for finding in found.findings if finding.level == "problem")
    assert problem.cure == "give `device_map` lower limits, or `batch_size=1`"


def test_limits_of_accelerators_elsewhere_are_refused(folder):
    with pytest.raises(ConfigError, match="knows only `device_map=auto`"):
        plan_audit(folder, None, None, Accelerators(memory_gib=1, tflops=1), device_map="cpu=1GiB")


def test_a_second_model_gets_its_share_of_what_the_first_one_left(folder, monkeypatch):
    monkeypatch.setattr("ltmia.auditing.spread_cost.memory_limits", lambda _map: {"cpu": int(FREE_SHARE * 1e6)})
    spread = count_spread(setting(folder), "auto")
    size = 4 * setting(folder).pair.target.n_parameters
    assert spread.cpu == pytest.approx(sum(min(size, FREE_SHARE * free) for free in (1e6, 0.4e6)), abs=4)
    assert memory_limits("auto").keys() == {"cpu"} or torch.accelerator.is_available()
