"""Models from folders, adapters and hub ids: what works, what is refused, and that nothing foreign ever runs."""

import json
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from ltmia.errors import ConfigError, ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.finetuning.training import save_model
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.sources import find_base, find_source

TEXTS = ["The lamp burns low.", "Crate nine of the cargo holds a letter and a map.", "Snow on the pier."]
CPU = {"dtype": "float32", "device": "cpu"}


def tokenizer_of(n=300):
    return train_tokenizer(TEXTS * 3, n)


def small(seed=0, model_type="llama", vocab_size=300):
    shape = TinyConfig(model_type=model_type, vocab_size=vocab_size, hidden_size=32, n_layers=2, n_heads=2)
    return build_base(shape, seed=seed)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders that tests copy: a base, a full fine-tune, an adapter of the base."""
    root = tmp_path_factory.mktemp("models")
    save_model(small(1), tokenizer_of(), root / "base")
    save_model(small(2), tokenizer_of(), root / "target")
    adapted = get_peft_model(small(1), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    save_model(adapted, tokenizer_of(), root / "adapter")
    return root


@pytest.fixture
def models(bases, tmp_path):
    """Make a copy of the folders, to be spoilt."""
    for name in ("base", "target", "adapter"):
        shutil.copytree(bases / name, tmp_path / name)
    rewrite(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(target, base=None, **options):
    """Return the message of a refusal: one short paragraph."""
    with pytest.raises(ModelError) as caught:
        load_pair(target, base, **(CPU | options))
    message = str(caught.value)
    assert len(message) < 900
    assert "Traceback" not in message
    assert "\n" not in message
    return message


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def plant(path, flag):
    path.write_bytes(pickle.dumps(Bomb(flag)))


def test_a_full_fine_tune_and_its_base(bases):
    pair = load_pair(bases / "target", bases / "base", **CPU)
    assert pair.vocab_size == 300
    assert pair.target_origin.source == str(bases / "target")
    assert pair.reference_origin.source == str(bases / "base")
    ours, theirs = pair.reference.state_dict(), small(1).state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    assert not pair.target.training


def test_the_home_folder_may_be_written_as_a_tilde(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    assert load_pair("~/target", "~/base", **CPU).vocab_size == 300


def test_an_adapter_finds_its_base_and_shares_its_weights(bases):
    pair = load_pair(str(bases / "adapter"), "auto", **CPU)
    assert pair.reference is None
    assert pair.reference_origin.source == str(bases / "base")
    assert sum(p.numel() for p in pair.target.parameters()) == sum(p.numel() for p in small(1).parameters()) + sum(
        w.numel() for w in load_file(bases / "adapter/adapter_model.safetensors").values()
    )
    ids = torch.arange(9)[None]
    with torch.no_grad(), pair.target.disable_adapter():
        torch.testing.assert_close(pair.target(input_ids=ids).logits, small(1).eval()(input_ids=ids).logits)
    with torch.no_grad():
        assert (pair.target(input_ids=ids).logits - small(1).eval()(input_ids=ids).logits).abs().max() > 1e-3


def test_a_base_given_outright_goes_before_the_one_the_adapter_names(models):
    shutil.move(models / "base", models / "moved")
    pair = load_pair(models / "adapter", models / "moved", **CPU)
    assert pair.reference_origin.source == str(models / "moved")


def test_an_adapter_without_its_base_is_refused(models):
    shutil.rmtree(models / "base")
    message = refused(models / "adapter")
    assert str(models / "adapter") in message
    assert str(models / "base") in message
    assert "give it with `base`" in message
    rewrite(models / "adapter/adapter_config.json", base_model_name_or_path=None)
    assert "does not say which model it was fine-tuned from; name that one with `base`" in refused(models / "adapter")


def test_a_pickled_adapter_is_refused_and_does_not_run(models):
    (models / "adapter/adapter_model.safetensors").unlink()
    plant(models / "adapter/adapter_model.bin", models / "boom")
    assert "no adapter_model.safetensors; pickled adapters" in refused(models / "adapter")
    assert not (models / "boom").exists()


def test_an_adapter_of_another_architecture_is_refused(models):
    save_model(small(1, "gpt2"), tokenizer_of(), models / "other")
    assert "q_proj" in refused(models / "adapter", models / "other")


def test_an_adapter_with_embeddings_of_another_size_is_refused(models):
    adapted = get_peft_model(
        small(1, vocab_size=364),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(models / "base")
    save_model(adapted, tokenizer_of(), models / "grown")
    assert "size mismatch" in refused(models / "grown")


@pytest.mark.parametrize("card", ["base_model: {}", "base_model:\n- {}"])
def test_the_model_card_names_the_base_of_a_full_fine_tune(models, card):
    named = f"---\n{card.format(models / 'base')}\nlicense: mit\n---\n# A model\n"
    (models / "target/README.md").write_text(named)
    assert load_pair(models / "target", **CPU).reference_origin.source == str(models / "base")


@pytest.mark.parametrize(
    "card",
    [None, "# No metadata", "---\nbase_model: [a/b, c/d]\n---\n", "---\n: [\n---\n", "---\nbase_model: 3\n---\n"],
)
def test_a_card_that_names_no_base_is_not_enough(models, card):
    if card:
        (models / "target/README.md").write_text(card)
    assert "name that one with `base`" in refused(models / "target")


def test_a_target_without_a_tokenizer_uses_the_bases(models):
    for path in (models / "target").glob("tokenizer*"):
        path.unlink()
    assert load_pair(models / "target", models / "base", **CPU).tokenizer.get_vocab() == tokenizer_of().get_vocab()
    for path in (models / "base").glob("tokenizer*"):
        path.unlink()
    assert str(models / "base") in refused(models / "target", models / "base")


def test_other_tokens_are_refused_naming_the_first_differing_id(models):
    other = train_tokenizer(["Completely different words, quite unlike ours: xylophone, quartz."] * 3, 300)
    other.save_pretrained(models / "base")
    ours, theirs = ({i: t for t, i in v.get_vocab().items()} for v in (tokenizer_of(), other))
    first = min(i for i in ours if i in theirs and ours[i] != theirs[i])
    message = refused(models / "target", models / "base")
    assert f"id {first} is {ours[first]!r} for the target and {theirs[first]!r} for the base" in message


def test_tokens_added_while_fine_tuning_are_fine(models):
    grown = tokenizer_of()
    grown.add_tokens(["<patient>"])
    save_model(small(2, vocab_size=364), grown, models / "target")
    pair = load_pair(models / "target", models / "base", **CPU)
    assert pair.vocab_size == 300
    assert pair.target_runner.vocab_size == 364
    assert len(pair.tokenizer) == 301


def test_folders_that_hold_no_model(models):
    (models / "empty").mkdir()
    assert "no config.json" in refused(models / "empty", models / "base")
    assert "files found: none" in refused(models / "empty", models / "base")
    (models / "target/config.json").unlink()
    assert "files found: " in refused(models / "target", models / "base")
    assert "there is nothing there" in refused(models / "nowhere", models / "base")
    assert "there is nothing there" in refused(models / "gone.gguf", models / "base")
    assert "another kind of file" in refused(models / "base/model.safetensors", models / "base")
    assert "no config.json" in refused(models / "base", models / "empty")


def test_pickled_weights_are_refused_and_do_not_run(models):
    (models / "target/model.safetensors").unlink()
    assert "found none" in refused(models / "target", models / "base")
    plant(models / "target/pytorch_model.bin", models / "boom")
    assert "only pytorch_model.bin, which could run code when loaded" in refused(models / "target", models / "base")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (models / "target/model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(models / "target", models / "base")
    assert "weight_map must name .safetensors files beside it only, found pytorch_model.bin" in message
    assert not (models / "boom").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\x00garbage", b"[" * 100_000])
def test_damaged_files_are_refused(models, file, content):
    (models / "target" / file).write_bytes(content)
    assert str(models / "target") in refused(models / "target", models / "base")


def test_a_config_that_does_not_fit_its_weights_is_refused(models):
    rewrite(models / "target/config.json", hidden_size=64)
    refused(models / "target", models / "base")
    rewrite(models / "target/config.json", hidden_size="wide")
    assert "hidden_size" in refused(models / "target", models / "base")
    rewrite(models / "target/config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    refused(models / "target", models / "base")


def test_code_that_comes_with_a_model_runs_only_by_flag(models, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(models / "modules"))
    target, flag = models / "target", models / "ran"
    (target / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(flag)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    rewrite(target / "config.json", auto_map=code, model_type="own", architectures=["Own"])
    message = refused(target, models / "base")
    assert "contains code, which runs only with `trust_remote_code=True`" in message
    assert not flag.exists()
    # A type that is known here is loaded by the code that is known here.
    rewrite(target / "config.json", model_type="llama")
    load_pair(target, models / "base", **CPU)
    assert not flag.exists()
    rewrite(target / "config.json", model_type="own")
    pair = load_pair(target, models / "base", trust_remote_code=True, **CPU)
    assert flag.exists()
    assert pair.target_origin.trust_remote_code


@pytest.fixture
def no_network(monkeypatch):
    opened = []

    def refuse(self, address):
        opened.append(address)
        raise OSError("blocked by the test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: refuse(None, a))
    return opened


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "nobody/nothing@v1"])
def test_a_hub_id_that_is_not_here_is_refused_offline_without_a_socket(models, no_network, name):
    message = refused(name, models / "base")
    assert f"no folder of that name here, so taken as the hub id {name.partition('@')[0]}" in message
    assert no_network == []


def test_a_hub_that_does_not_answer_is_asked_once(models, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "the hub cannot be reached (blocked by the test)" in refused("nobody/nothing", models / "base")
    assert len(no_network) == 1


def test_folders_never_ask_the_network(bases, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_pair(bases / "target", bases / "base", **CPU)
    load_pair(bases / "adapter", **CPU)
    assert no_network == []


def test_adapters_in_the_hubs_cache_work_offline(models, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "cache"))
    in_cache(models / "cache", "org/adapter", models / "adapter")
    pair = load_pair("org/adapter", **CPU)
    assert pair.reference is None
    assert pair.target_origin.source == "org/adapter"
    assert pair.target_origin.revision == "1" * 40
    in_cache(models / "cache", "org/base", models / "base")
    (models / "target/README.md").write_text("---\nbase_model: org/base\n---\n")
    in_cache(models / "cache", "org/target", models / "target")
    pair = load_pair("org/target", **CPU)
    assert pair.reference_origin.source == "org/base"
    assert pair.reference_origin.revision == "1" * 40
    assert load_pair("org/target@main", "org/base", **CPU).target_origin.revision == "1" * 40
    assert no_network == []


def test_a_base_that_only_a_file_names_is_not_asked_of_the_hub(models, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "cache"))
    rewrite(models / "adapter/adapter_config.json", base_model_name_or_path="org/base")
    (models / "target/README.md").write_text("---\nbase_model: org/base\n---\n")
    for target in (models / "adapter", models / "target"):
        assert "set `base=org/base` or `allow_hub=True`" in refused(target)
    assert no_network == []
    in_cache(models / "cache", "org/base", models / "base")
    for target in (models / "adapter", models / "target"):
        assert load_pair(target, **CPU).reference_origin.revision == "1" * 40
    in_cache(models / "cache", "org/sft", models / "adapter")
    cached = models / "cache/models--org--sft/snapshots" / ("1" * 40)
    rewrite(cached / "adapter_config.json", base_model_name_or_path="org/absent")
    rewrite(models / "adapter/adapter_config.json", base_model_name_or_path="org/sft")
    assert "org/sft names 'org/absent' as its base, which is not on this machine" in refused(models / "adapter")
    assert no_network == []
    shutil.rmtree(models / "cache")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the hub's client waits before it asks again
    refused(models / "adapter", allow_hub=True)
    assert no_network != []


def test_the_revision_that_a_fine_tune_names_is_taken(models, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "cache"))
    in_cache(models / "cache", "org/base", models / "target")
    in_cache(models / "cache", "org/base", models / "base", commit="2" * 40, ref="v1")
    rewrite(models / "adapter/adapter_config.json", base_model_name_or_path="org/base", revision="v1")
    (models / "target/README.md").write_text("---\nbase_model: org/base\nbase_model_revision: v1\n---\n")
    for target in (models / "adapter", models / "target"):
        pair = load_pair(target, **CPU)
        assert pair.reference_origin.revision == "2" * 40
        reference = pair.target.get_base_model() if pair.reference is None else pair.reference
        assert torch.equal(reference.get_input_embeddings().weight, small(1).get_input_embeddings().weight)
    rewrite(models / "adapter/adapter_config.json", revision="v2")
    assert "org/base@v2" in refused(models / "adapter")
    rewrite(models / "adapter/adapter_config.json", base_model_name_or_path=str(models / "base"))
    assert load_pair(models / "adapter", **CPU).reference_origin.source == str(models / "base")


def in_cache(cache, hub_id, folder, *, commit="1" * 40, ref="main"):
    place = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)


def test_models_in_memory(models):
    tokenizer = tokenizer_of()
    assert load_pair(small(1), small(2), tokenizer=tokenizer).vocab_size == 300
    with pytest.raises(ModelError, match="need their tokenizer"):
        load_pair(small(1), small(2))
    with pytest.raises(ModelError, match="the target is a module but the base a path"):
        load_pair(small(1), models / "base", tokenizer=tokenizer)
    with pytest.raises(ModelError, match="the target is a path but the base a module"):
        load_pair(models / "target", small(1), tokenizer=tokenizer)
    for base in (None, "auto"):
        with pytest.raises(ModelError, match="needs a reference"):
            load_pair(small(1), base, tokenizer=tokenizer)
    adapted = get_peft_model(small(1), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert load_pair(adapted, tokenizer=tokenizer).reference is None


def test_dtype_and_device_are_as_asked(bases, tmp_path):
    save_model(small(1).to(torch.bfloat16), tokenizer_of(), tmp_path / "half")
    half = str(tmp_path / "half")
    assert load_model(half, LoadOptions(dtype="float32", device="cpu"))[0].dtype == torch.float32
    assert load_model(half, LoadOptions(dtype="bfloat16", device="cpu"))[0].dtype == torch.bfloat16
    assert load_model(str(bases / "base"), LoadOptions(dtype="auto", device="cpu"))[0].dtype == torch.float32
    for wrong, message in (({"dtype": "int3"}, "`dtype=int3`"), ({"device": "gpu9"}, "`device=gpu9`")):
        with pytest.raises(ConfigError, match=message):
            load_model(half, LoadOptions(**(CPU | wrong)))


def test_places(bases, tmp_path):
    assert find_base(find_source(str(bases / "adapter"))) == str(bases / "base")
    assert not find_source(str(tmp_path)).has_tokenizer
    assert load_tokenizer(str(bases / "base"), LoadOptions()).eos_token_id == 0


def test_a_revision_of_a_hub_model_is_what_all_its_files_are_of(models, no_network, monkeypatch):
    """Two commits with other weights and other tokens, one of them named by a tag."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "cache"))
    in_cache(models / "cache", "org/model", models / "target")
    place, older = models / "cache/models--org--model", "2" * 40
    shutil.copytree(models / "base", place / f"snapshots/{older}")
    grown = tokenizer_of()
    grown.add_tokens(["<older>"])
    grown.save_pretrained(place / f"snapshots/{older}")
    (place / "refs/v1").write_text(older)
    for name, commit, seed in (
        ("org/model", "1" * 40, 2),
        ("org/model@v1", older, 1),
        (f"org/model@{older}", older, 1),
    ):
        pair = load_pair(name, models / "base", **CPU)
        assert pair.target_origin.revision == commit
        assert ("<older>" in pair.tokenizer.get_vocab()) == (commit == older)
        ours, theirs = pair.target.state_dict(), small(seed).state_dict()
        assert all(torch.equal(ours[key], weight) for key, weight in theirs.items())
    assert no_network == []
