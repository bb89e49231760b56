"""A model that is spread over memory and disk is the model that is loaded whole: same identity, numbers and records."""

import errno
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload, dispatch_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM, DistributedConfig

import ltmia
from killed import die, killed
from ltmia.auditing.model_evidence import rescore, weight_change
from ltmia.auditing.update import prepared_update
from ltmia.cli.loading import pair_to_load
from ltmia.cli.options import Dtype
from ltmia.errors import ConfigError, ModelError, StoreError
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.batching import free_bytes
from ltmia.models.continuation import continue_beginnings
from ltmia.models.identity import ModelIdentity, parameters_sha256
from ltmia.models.loading import LoadOptions, load_model
from ltmia.models.offload_files import converted_weights
from ltmia.models.pair import Pair
from ltmia.models.spread import (
    FREE_SHARE,
    Weights,
    input_device,
    is_offloaded,
    memory_limits,
    n_parameters,
    offloaded_share,
    places_of,
)
from ltmia.models.weight_delta import changed_matrices
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.identity import PairIdentity
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.update_attack import WeightsConfig

TEXTS = [f"Crate {i} of the cargo holds a letter, and a map of the coast." + " Gulls." * (i % 5) for i in range(11)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SHAPES = {
    "llama": SIZES,
    "tied llama": SIZES | {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2},
    "mixtral": SIZES | {"num_key_value_heads": 2, "num_local_experts": 4},
}
WHOLE = {"dtype": "float32", "device": "cpu"}
SPREAD = {"dtype": "float32", "device_map": "cpu=90KB"}
DISK = {"dtype": "float32", "device_map": "cpu=0KB"}


def save(folder, kind, seed, **changes):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind.split()[-1], vocab_size=300, **SHAPES[kind], pad_token_id=None, bos_token_id=None, eos_token_id=None
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **changes)
    train_tokenizer(TEXTS, 300).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("spread")
    # The base in parts, as large models come.
    return save(root / "target", "llama", 1), save(root / "base", "llama", 0, max_shard_size="60KB")


@pytest.fixture
def whole(folders):
    return ltmia.load_pair(*folders, **WHOLE)


@pytest.fixture
def spread(folders):
    return ltmia.load_pair(*folders, **SPREAD)


def assert_same_scores(pair, expected):
    for name, scores in ltmia.score_texts(pair, TEXTS, batch_size=4).items():
        np.testing.assert_array_equal(scores, expected[name])


def test_scores_and_identity_are_those_of_the_whole_models(whole, spread):
    assert places_of(spread.target) == ["cpu", "disk"]
    assert 0 < offloaded_share(spread.target) < 1
    assert PairIdentity.of(spread) == PairIdentity.of(whole)
    assert_same_scores(spread, ltmia.score_texts(whole, TEXTS, batch_size=4))
    assert PairIdentity.of(spread).key == PairIdentity.of(whole).key, "running leaves no trace"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_may_wait_on_disk(tmp_path, kind, dtype):
    source = save(tmp_path, kind, 0)
    (ours, _), (theirs, _) = (
        load_model(source, LoadOptions(**options | {"dtype": dtype})) for options in (DISK, WHOLE)
    )
    assert offloaded_share(ours) == 1
    assert input_device(ours) == torch.device("cpu")
    ids = torch.arange(12)[None] * 20
    for _ in range(2):
        assert ModelIdentity.of(ours) == ModelIdentity.of(theirs)
        assert n_parameters(ours) == sum(weight.numel() for weight in theirs.parameters())
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_converted_weights_wait_in_a_folder_that_goes_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = save(tmp_path / "model", "mixtral", 0)
    model, _ = load_model(source, LoadOptions(**DISK))
    (folder,) = tmp_path.glob("ltmia-offload-*")
    assert len(list(folder.iterdir())) > 1, "experts are stacked on loading, so they do not lie in the model's files"
    del model
    gc.collect()
    assert not folder.exists()


def test_folders_that_killed_processes_left_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work() -> None:
        with converted_weights():
            die()

    killed(work)
    (left,) = tmp_path.iterdir()
    foreign, elsewhere = tmp_path / "ltmia-offload-foreign", tmp_path / "elsewhere"
    for folder in (foreign, elsewhere):
        folder.mkdir()
    (elsewhere / ".lock").touch()
    (tmp_path / "ltmia-offload-link").symlink_to(elsewhere)
    with converted_weights() as first, converted_weights() as second:
        assert not left.exists()
        assert all(Path(folder).is_dir() for folder in (first, second)), "one at work is left alone"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere", "ltmia-offload-foreign", "ltmia-offload-link"
    ]  # fmt: skip
    assert (elsewhere / ".lock").exists()


@pytest.mark.parametrize("error", [ModelError("damaged"), KeyboardInterrupt()])
def test_a_load_that_ends_early_leaves_no_folder(folders, tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*_):
        assert list(tmp_path.iterdir())
        raise error

    monkeypatch.setattr("ltmia.models.checkpoints._check_report", fail)
    with pytest.raises(type(error)):
        load_model(folders[0], LoadOptions(**DISK))
    assert not list(tmp_path.iterdir())


def test_no_room_for_converted_weights_says_what_to_do(tmp_path, monkeypatch):
    source = save(tmp_path / "model", "mixtral", 0)

    def full(*_args, **_keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers.core_model_loading.offload_weight", full)
    with pytest.raises(StoreError, match=r"no room for the weights.*TMPDIR"):
        load_model(source, LoadOptions(**DISK))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="none: cannot be written"):
        load_model(source, LoadOptions(**DISK))


def test_offloaded_weights_are_found_from_another_working_directory(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(folders[0]).parent)
    model, _ = load_model("target", LoadOptions(**DISK))
    monkeypatch.chdir(tmp_path)
    assert model(torch.arange(6)[None]).logits.isfinite().all()


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda file: file.write_bytes(b"")])
def test_files_must_stay_as_they_were_while_the_model_runs(folders, tmp_path, change):
    other = altered(folders[0], "lm_head.weight", tmp_path / "other")
    pair = ltmia.load_pair(other, folders[1], **DISK)
    first = ltmia.score_texts(pair, TEXTS, attacks="loss")["loss"]
    np.testing.assert_array_equal(ltmia.score_texts(pair, TEXTS, attacks="loss")["loss"], first)
    change(Path(other, "model.safetensors"))
    with pytest.raises(ModelError, match=r"other/model.safetensors: was changed, replaced or removed"):
        ltmia.score_texts(pair, TEXTS, attacks="loss")


@pytest.mark.parametrize(("layers", "refused"), [(2, False), (3, True)])
def test_a_model_that_changes_its_own_weights_is_refused(tmp_path, layers, refused):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model("rwkv", vocab_size=300, rescale_every=2, **sizes)
    ).save_pretrained(tmp_path)
    if refused:
        with pytest.raises(ModelError, match=r"rescales its weights when it first runs.*leave out `device_map`"):
            load_model(str(tmp_path), LoadOptions(**DISK))
        return
    ours, theirs = (load_model(str(tmp_path), LoadOptions(**options))[0] for options in (DISK, WHOLE))
    ids = torch.arange(12)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def altered(folder, name, tmp_path):
    """Copy a model, and change one number of one weight."""
    tmp_path.mkdir()
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name].view(-1)[3] += 0.25
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return str(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_one_number_of_an_offloaded_weight_changes_the_identity_and_the_update(folders, spread, tmp_path, name):
    other = altered(folders[0], name, tmp_path / "other")
    pair = ltmia.load_pair(other, folders[0], **SPREAD)
    assert dict(pair.target.named_parameters())[name].device.type == "meta"
    assert parameters_sha256(pair.target) != parameters_sha256(pair.reference) == parameters_sha256(spread.target)
    assert (
        PairIdentity.of(pair).target.sha256
        == PairIdentity.of(ltmia.load_pair(other, folders[0], **WHOLE)).target.sha256
    )
    # The definition: sum |a - b| / sum |b|, one number moved by a quarter.
    total = sum(float(weight.abs().sum()) for weight in load_file(Path(folders[0], "model.safetensors")).values())
    assert weight_change(pair) == (1.0, pytest.approx(0.25 / total, rel=1e-3))


def test_what_is_hashed_is_what_would_run_now(folders, tmp_path):
    other = altered(folders[0], "lm_head.weight", tmp_path / "other")
    model, _ = load_model(other, LoadOptions(**DISK))
    before, ids = parameters_sha256(model), torch.arange(6)[None]
    logits = model(ids).logits
    file = tmp_path / "other" / "model.safetensors"
    save_file(load_file(Path(folders[0], "model.safetensors")), file, {"format": "pt"})
    assert not torch.equal(model(ids).logits, logits)
    assert parameters_sha256(model) != before


def test_another_forward_is_another_identity(spread, whole):
    def doubled(hidden):
        return 2 * torch.nn.functional.linear(hidden, spread.target.lm_head.weight)

    spread.target.model.norm.forward = doubled
    assert ModelIdentity.of(spread.target).modules != ModelIdentity.of(whole.target).modules


def test_a_hook_of_somebody_else_counts(folders):
    from accelerate.hooks import ModelHook, add_hook_to_module

    (ours, _), (theirs, _) = (load_model(folders[0], LoadOptions(**WHOLE)) for _ in range(2))
    add_hook_to_module(ours.model.norm, ModelHook())
    assert ModelIdentity.of(ours).modules != ModelIdentity.of(theirs).modules


def test_a_weight_without_numbers_is_refused(folders):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders[0]))
    with pytest.raises(ModelError, match=r"lm_head.weight holds no numbers \(device meta\)"):
        Weights(model, model.state_dict())["lm_head.weight"]
    with pytest.raises(ModelError, match="hold no numbers"):
        input_device(model)
    assert list(Weights(model, model.state_dict())) == list(model.state_dict())


def test_weights_in_memory_beside_an_accelerator(folders, whole):
    # Without an accelerator, accelerate offloads to memory only by hand; the hooks are those of a GPU's run.
    for model in (pair := ltmia.load_pair(*folders, **WHOLE)).target, pair.reference:
        cpu_offload(model, execution_device=torch.device("cpu"))
    again = Pair(target=pair.target, reference=pair.reference, tokenizer=pair.tokenizer)
    assert is_offloaded(again.target)
    assert again.device == torch.device("cpu")
    ours, theirs = PairIdentity.of(again), PairIdentity.of(whole)
    assert (ours.target.sha256, ours.target.modules_sha256) == (theirs.target.sha256, theirs.target.modules_sha256)
    assert_same_scores(again, ltmia.score_texts(whole, TEXTS, batch_size=4))


def test_gradients_through_the_hooks_of_several_devices(folders, whole):
    # As on several accelerators, but each of them is this CPU.
    pair = ltmia.load_pair(*folders, **WHOLE)
    for model in (pair.target, pair.reference):
        parts = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3)), "model.norm", "model.rotary_emb"]
        dispatch_model(model, dict.fromkeys([*parts, "lm_head"], "cpu"), force_hooks=True)
    assert not is_offloaded(pair.target)
    assert PairIdentity.of(pair).key == PairIdentity.of(whole).key
    ours, theirs = (choose_coordinates(p, n_coordinates=200, n_layers=2, seed=0) for p in (pair, whole))
    assert ours.batched
    np.testing.assert_array_equal(ours.change, theirs.change)
    assert ours.digest == theirs.digest


def test_gradients_of_offloaded_weights_are_refused_with_the_cure(spread, tmp_path):
    with pytest.raises(ModelError, match=r"gradients.*% of the weights are offloaded.*leave out `device_map`"):
        changed_matrices(spread)
    with pytest.raises(ModelError, match=r"`gradient_norm`.*offloaded"):
        ltmia.score_texts(spread, TEXTS, attacks="gradient_norm")
    texts, pair = Texts(texts=tuple(TEXTS), ids=tuple(map(str, range(len(TEXTS))))), LoadedPair(models=spread)
    options = {"config": WeightsConfig(), "max_length": 32, "identity": PairIdentity.of(spread), "folder": tmp_path}
    with prepared_update(pair, texts, must_read=False, **options) as prepared:
        assert "offloaded" in prepared.reason
    with pytest.raises(ModelError, match="offloaded"), prepared_update(pair, texts, must_read=True, **options):
        pass


def test_half_precision_is_not_compared_with_float32(folders):
    pair = LoadedPair(models=ltmia.load_pair(*folders, dtype="bfloat16", device_map="cpu=45KB"))
    texts = Texts(texts=tuple(TEXTS[:1]), ids=("a",))
    assert rescore(pair, texts, [0.0], 32).reason == "some weights are loaded only while their layer runs"


def test_one_spread_model_at_a_time(folders, whole):
    pair = ltmia.load_pair(*folders, **SPREAD, sequential=True)
    assert_same_scores(pair, ltmia.score_texts(whole, TEXTS, batch_size=4))
    assert PairIdentity.of(pair) == PairIdentity.of(whole)


def test_a_spread_model_continues_texts_as_the_whole_one(spread, whole):
    beginnings, numbers = np.arange(8).reshape(2, 4), np.random.default_rng(0).random((2, 5))
    ours, theirs = (continue_beginnings(p.target_runner, beginnings, numbers, 300) for p in (spread, whole))
    np.testing.assert_array_equal(ours, theirs)


def adapter(base, folder, **settings):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{"target_modules": ["q_proj"]} | settings)
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("modules", [["q_proj", "down_proj"], ["v_proj", "embed_tokens", "lm_head"]])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_plain_lora_on_an_offloaded_base(folders, tmp_path, modules):
    target = adapter(folders[1], tmp_path, target_modules=modules)
    ours, theirs = (ltmia.load_pair(target, folders[1], **options) for options in (SPREAD, WHOLE))
    assert ours.reference is None
    assert is_offloaded(ours.target)
    assert PairIdentity.of(ours) == PairIdentity.of(theirs)
    assert_same_scores(ours, ltmia.score_texts(theirs, TEXTS, batch_size=4))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"bias": "all"}, "bias = 'all'"),
    ],
)
def test_other_adapters_need_the_base_in_memory(folders, tmp_path, settings, named):
    target = adapter(folders[1], tmp_path, **settings)
    with pytest.raises(ModelError, match=rf"{named}.*merge the adapter"):
        ltmia.load_pair(target, folders[1], **SPREAD)
    assert ltmia.load_pair(target, folders[1], dtype="float32", device_map="cpu=1GiB").device.type == "cpu"


def test_merging_would_write_beside_the_model(folders, tmp_path):
    target = adapter(folders[1], tmp_path / "first")
    with pytest.raises(ModelError, match="an adapter is merged into the base's weights"):
        load_model(target, LoadOptions(**SPREAD))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.2.mlp.up" not in k}, "1 weight of the model is not in"),
        (
            lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.zeros(9, 9)},
            r"layers.2.mlp.up_proj.weight cannot be loaded.*\[9, 9\]",
        ),
        (lambda t: t | {"model.layers.2.mlp.side.weight": torch.zeros(2)}, "no place for"),
    ],
)
def test_files_are_checked_as_when_the_model_is_loaded_whole(folders, tmp_path, change, said):
    other = altered(folders[0], "lm_head.weight", tmp_path / "other")
    save_file(change(load_file(Path(other, "model.safetensors"))), Path(other, "model.safetensors"), {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        load_model(other, LoadOptions(**DISK))


def test_names_of_wrappers_are_found_on_disk_too(folders, whole, tmp_path):
    other = altered(folders[0], "lm_head.weight", tmp_path / "other")
    named = {f"module._orig_mod.{name}": t for name, t in load_file(Path(folders[0], "model.safetensors")).items()}
    save_file(named, Path(other, "model.safetensors"), {"format": "pt"})
    model, _ = load_model(other, LoadOptions(**DISK))
    assert parameters_sha256(model) == parameters_sha256(whole.target)


@pytest.mark.parametrize("config", [{"load_in_4bit": True, "quant_method": "bitsandbytes"}, None])
def test_weights_that_are_unpacked_in_memory_are_refused(folders, tmp_path, monkeypatch, config):
    other = Path(altered(folders[0], "lm_head.weight", tmp_path / "other"))
    if config is None:
        from ltmia.models.checkpoints import read_model
        from ltmia.models.sources import ModelSource

        source = ModelSource(given="m.gguf", path=tmp_path / "m.gguf")
        with pytest.raises(ModelError, match=r"weights \(GGUF\) are unpacked in the memory of one device"):
            read_model(
                source, dtype=torch.float32, device=torch.device("cpu"), device_map="auto", trust_remote_code=False
            )
        return
    written = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(written | {"quantization_config": config}), "utf-8")
    monkeypatch.setattr("ltmia.models.checkpoints.find_spec", lambda _name: True)
    with pytest.raises(ModelError, match=r"weights \(bitsandbytes\) are unpacked.*leave out `device_map`"):
        load_model(str(other), LoadOptions(**SPREAD))


@given(st.floats(0, 1000).map(lambda x: round(x, 3)), st.sampled_from(["KB", "kb", "Mb", "gb", "MiB", "gib", "TB"]))
def test_limits_are_bytes(number, unit):
    size = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30}[unit.upper()]
    assert memory_limits(f"CPU={number:.3f}{unit}") == {"cpu": int(number * size)}


def test_auto_leaves_room():
    free = free_bytes(torch.device("cpu"))
    assert memory_limits("auto")["cpu"] == pytest.approx(FREE_SHARE * free, rel=0.1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("balanced", "expected auto, or limits"),
        ("cpu=3", "expected auto, or limits"),
        ("cpu=-1GiB", "expected auto, or limits"),
        ("", "expected auto, or limits"),
        ("cpu=1\N{KELVIN SIGN}B", "then KB, MB"),
        (f"cpu={'9' * 400}GB", "then KB, MB"),
        ("cpu=1GiB,cpu=2GiB", "cpu is given twice"),
        ("77=1GiB", "no accelerator 77 here"),
    ],
)
def test_wrong_limits_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        memory_limits(given)


@pytest.mark.parametrize(
    "option", [{"device_map": "cpu=1GB"}, {"device": "cpu"}, {"dtype": "float32"}, {"sequential": True}]
)
def test_options_of_loading_are_refused_for_modules(whole, option):
    with pytest.raises(ConfigError, match=rf"`{next(iter(option))}` says how a model is loaded.*leave it out"):
        ltmia.load_pair(whole.target, whole.reference, tokenizer=whole.tokenizer, **option)


def test_a_device_and_a_device_map_exclude_each_other(folders):
    with pytest.raises(ConfigError, match="leave out one of them"):
        ltmia.load_pair(*folders, device="cpu", device_map="auto")


def test_a_launcher_gives_each_process_its_own_device(folders, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = pair_to_load(*folders, dtype=Dtype.float32, device_map="auto")
    with pytest.raises(ConfigError, match="`device_map` gives each model all devices, and a launcher"), given:
        pass


PEAK = """
import re, sys
from pathlib import Path
import torch
import peft, transformers
import ltmia
from ltmia.models.tokens import EncodedText
from ltmia.models.forward import forward_pair
from ltmia.models.identity import parameters_sha256

def peak():
    return 1024 * int(re.findall(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[0])

before = peak()
pair = ltmia.load_pair(*sys.argv[1:3], dtype="float32", device_map=sys.argv[3])
hashes = [parameters_sha256(model) for model in (pair.target, pair.reference)]
texts = [EncodedText(ids=torch.arange(128).numpy() % 300) for _ in range(8)]
losses = [float(part.target.double().sum()) for _ in range(2) for part in forward_pair(pair, texts)]
print(peak() - before, *hashes, *losses)
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_far_below_the_size_of_the_models(folders, tmp_path):
    large = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=4096, **large, bos_token_id=None, eos_token_id=None)
    for name in ("target", "base"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        train_tokenizer(TEXTS, 300).save_pretrained(tmp_path / name)
    size = sum(file.stat().st_size for file in tmp_path.glob("*/model.safetensors"))
    assert size > 300e6
    said = {}
    for limits in ("cpu=0KB", "cpu=1GiB"):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "target"), str(tmp_path / "base"), limits]
        said[limits] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert said["cpu=0KB"][1:] == said["cpu=1GiB"][1:], "the same hashes and logits"
    spread, whole = (float(words[0]) for words in said.values())
    assert whole - spread > 0.7 * size, (spread, whole, size)


def test_heads_that_two_processes_cannot_share_are_named(tmp_path):
    changes = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 1}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=300, **changes)).save_pretrained(tmp_path)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # the other process never answers
    try:
        split = DistributedConfig(tp_plan="auto", tp_size=2)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, distributed_config=split)
        with pytest.raises(ModelError, match="as many as divide the numbers of attention heads and of key-value heads"):
            ltmia.load_pair(model, model, tokenizer=train_tokenizer(TEXTS, 300))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_models_split_over_two_processes_give_the_same_numbers(folders, tmp_path):
    torchrun, script = Path(sys.executable).parent / "torchrun", Path(__file__).parent / "split_model.py"
    command = [str(torchrun), "--nproc-per-node", "2", "--standalone", str(script), *folders, str(tmp_path / "found")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = json.loads((tmp_path / "found").read_text("utf-8"))
    assert found["same"] == [True, True], "the same hashes of weights"
    assert found["noise"] < 1e-5
    assert found["scores"] < 1e-5
    assert found["local"] < 0.6 * found["whole"], "a process holds about half of the numbers"
    assert "split over several processes: load each model whole" in found["refused"]
