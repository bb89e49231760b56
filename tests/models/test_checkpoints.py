"""Whole checkpoints: what their files hold is what runs, or they are refused by name with the cure.

Expected log-probabilities come from a plain loop over the weights themselves, float32 and one text at a time.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ltmia.errors import ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base
from ltmia.finetuning.training import save_model
from ltmia.models.identity import ModelIdentity
from ltmia.models.loading import LoadOptions, load_model, load_pair
from plain_loops import TOKENIZER, logps, refused

CPU = LoadOptions(dtype="float32", device="cpu")


def small(seed=1, model_type="llama", **more):
    shape = {"vocab_size": 300, "hidden_size": 32, "n_layers": 2, "n_heads": 2} | more
    return build_base(TinyConfig(model_type=model_type, **shape), seed=seed).eval()


@pytest.fixture
def saved(tmp_path):
    """Save a model, and return a function that puts other weights, or another config, into its folder."""
    save_model(small(), TOKENIZER, tmp_path / "model")

    def write(weights=None, **config):
        folder = tmp_path / "model"
        if weights is not None:
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return write


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def renamed(change):
    return {change(name): weight for name, weight in weights_of(small()).items()}


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "data parallel, compiled": lambda name: f"module._orig_mod.{name}",
    "compiled block by block": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        "layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "sharded block by block and inside": lambda name: name.replace(
        "layers.0.", "layers.0._fsdp_wrapped_module."
    ).replace(".mlp.", ".mlp._fsdp_wrapped_module._orig_mod."),
    "merged adapter": lambda name: f"base_model.model.{name}",
}


@pytest.mark.parametrize("change", WRAPPED.values(), ids=WRAPPED)
def test_what_training_wrapped_around_a_model_is_stripped_from_its_names_and_said(saved, change, tmp_path):
    model, origin = load_model(str(saved(renamed(change))), CPU)
    np.testing.assert_allclose(logps(model), logps(small()), atol=1e-4)
    assert ["wrapped" in remark for remark in origin.remarks] == [True]
    save_model(model, TOKENIZER, tmp_path / "again")
    assert load_file(tmp_path / "again/model.safetensors").keys() == weights_of(small()).keys()


def test_a_model_with_names_of_its_own_has_no_remarks(saved):
    assert load_model(str(saved()), CPU)[1].remarks == ()
    bare = {name.removeprefix("model."): weight for name, weight in weights_of(small()).items()}
    model, origin = load_model(str(saved(bare)), CPU)
    assert origin.remarks == ()
    np.testing.assert_allclose(logps(model), logps(small()), atol=1e-4)


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_a_weight_that_stands_in_two_files_or_under_two_names_is_refused(saved):
    """transformers takes the last one, whatever the index says."""
    weights, name = weights_of(small()), "model.norm.weight"
    folder = saved(weights | {f"_orig_mod.{name}": weights[name] + 1})
    assert f"_orig_mod.{name} of model.safetensors" in refused(folder)
    first, second = PARTS
    save_file(weights, folder / first)
    save_file({name: weights[name] + 1}, folder / second)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, first)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "holds a model twice, as model.safetensors and as the parts" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert np.abs(logps(load_model(str(folder), CPU)[0]) - logps(small())).max() < 1e-4  # nothing names the second
    index["weight_map"]["lm_head.weight"] = second
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{name} of {first} and as {name} of {second}" in refused(folder)


@pytest.mark.parametrize("change", [lambda name: f"student.{name}", lambda name: name.replace("layers", "blocks")])
def test_unknown_names_are_refused_naming_both_sides(saved, change):
    message = refused(saved(renamed(change)))
    assert "not in its files, first " in message
    assert "random numbers" in message


@pytest.mark.parametrize("part", ["layers.1.", "lm_head", "layers.0.mlp.up_proj", "embed_tokens", "model.norm"])
def test_missing_weights_are_refused_naming_the_first_and_their_number(saved, part):
    kept = {name: weight for name, weight in weights_of(small()).items() if part not in name}
    gone = sorted(weights_of(small()).keys() - kept.keys())
    message = refused(saved(kept))
    assert f"first {gone[0]}" in message
    assert f"{len(gone)} weight" in message


def test_a_tied_head_may_be_missing_and_an_untied_one_may_not(saved):
    weights = weights_of(small())
    del weights["lm_head.weight"]
    assert "lm_head.weight" in refused(saved(weights))
    model, _ = load_model(str(saved(weights, tie_word_embeddings=True)), CPU)
    tied = small()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    np.testing.assert_allclose(logps(model), logps(tied), atol=1e-4)


@pytest.mark.parametrize("which", ["target", "base"])
def test_a_missing_weight_is_refused_in_either_model_of_a_pair(tmp_path, which):
    for name in ("target", "base"):
        save_model(small(), TOKENIZER, tmp_path / name)
    weights = weights_of(small())
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / which / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{which}: 1 weight of the model is not in its files, first model\.norm"):
        load_pair(tmp_path / "target", tmp_path / "base", dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "extra",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight", "lm_head.bias", "model.scale"],
)
def test_weights_that_the_model_has_no_place_for_are_refused(saved, extra):
    assert f"no place for, first {extra}" in refused(saved(weights_of(small()) | {extra: torch.ones(32)}))


def test_buffers_that_the_model_computes_itself_are_left_out_without_a_word(saved):
    extra = {
        "model.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.position_ids": torch.arange(8),
    }
    model, origin = load_model(str(saved(weights_of(small()) | extra)), CPU)
    assert origin.remarks == ()
    np.testing.assert_allclose(logps(model), logps(small()), atol=1e-4)


def test_a_head_beside_the_language_model_is_left_out_and_said(saved):
    model, origin = load_model(str(saved(weights_of(small()) | {"v_head.summary.weight": torch.ones(1, 32)})), CPU)
    assert origin.remarks == ("left out, because they are not part of the language model: v_head.summary.weight",)
    np.testing.assert_allclose(logps(model), logps(small()), atol=1e-4)


def test_another_shape_is_refused_naming_both(saved):
    wide = weights_of(small()) | {"model.layers.0.mlp.up_proj.weight": torch.ones(7, 32)}
    message = refused(saved(wide))
    assert "model.layers.0.mlp.up_proj.weight has the shape 7 x 32 in its files and " in message
    assert "x 32 by its config.json" in message


@pytest.mark.parametrize("said", ["bfloat16", "float32"])
def test_weights_are_cast_once_from_what_is_stored(saved, said):
    """A config that says bfloat16 over float32 weights must not round them on the way to float32."""
    model, _ = load_model(str(saved(weights_of(small()), dtype=said)), CPU)
    assert all(torch.equal(weight, weights_of(small())[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("target", "base", "expected"),
    [
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
    ],
)
def test_auto_is_one_dtype_for_both_models(tmp_path, monkeypatch, target, base, expected, sequential):
    monkeypatch.setattr("ltmia.runtime.computes_bfloat16", lambda _device: True)
    for name, dtype, seed in (("target", target, 1), ("base", base, 2)):
        save_model(small(seed).to(getattr(torch, dtype)), TOKENIZER, tmp_path / name)
    pair = load_pair(tmp_path / "target", tmp_path / "base", dtype="auto", device="cpu", sequential=sequential)
    for model in (pair.target, pair.reference):
        assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{expected}"}


def test_a_folder_of_checkpoints_alone_points_to_the_newest(tmp_path):
    for step in (500, 1500, 1000):
        save_model(small(), TOKENIZER, tmp_path / f"out/checkpoint-{step}")
    assert f"did you mean {tmp_path}/out/checkpoint-1500?" in refused(tmp_path / "out")
    with pytest.raises(ModelError, match=r"did you mean .*checkpoint-1500"):
        load_pair(tmp_path / "out", dtype="float32", device="cpu")
    (tmp_path / "out/config.json").write_text((tmp_path / "out/checkpoint-500/config.json").read_text())
    assert f"did you mean {tmp_path}/out/checkpoint-1500?" in refused(tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["global_step500/mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["zero_to_fp32.py", "latest"], "zero_to_fp32.py {} OUT --safe_serialization"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights {}/pytorch_model_fsdp_0 OUT"),
        (["__0_0.distcp", "__1_0.distcp", ".metadata"], "accelerate merge-weights {} OUT"),
        (["pytorch_model_fsdp.bin"], "accelerate merge-weights {} OUT"),
        (["tf_model.h5"], "tf_model.h5, weights of TensorFlow or Flax"),
        (["flax_model.msgpack"], "from_flax=True"),
        (["model.onnx"], "give the folder it was exported from"),
        (["pytorch_model.bin"], "from_pretrained(FOLDER).save_pretrained(FOLDER) writes safetensors"),
        (["training_args.bin"], "found none"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_weights_of_another_kind_are_refused_with_what_makes_weights_of_them(saved, files, expected, config):
    folder = saved()
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    if config:
        assert expected.format(folder) in refused(folder)
        return
    (folder / "config.json").unlink()
    sharded = any(word in expected for word in ("zero", "accelerate"))
    assert (expected.format(folder) if sharded else "no config.json") in refused(folder)


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "torchao": {"quant_method": "torchao", "quant_type": "int8_weight_only"},
    "hqq": {"quant_method": "hqq"},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "tomorrow's": {"quant_method": "tomorrow's"},
}


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_weights_that_are_not_unpacked_here_are_refused_by_name_with_the_cure(saved, method, dtype):
    message = refused(saved(quantization_config=QUANTISED[method]), dtype=dtype)
    assert f"quantised ({method})" in message
    assert "audit the model it was quantised from" in message


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("bitsandbytes", {"load_in_4bit": True}),
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("compressed-tensors", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    ],
)
def test_weights_whose_package_is_missing_are_refused_with_its_name(saved, monkeypatch, method, config):
    monkeypatch.setattr("ltmia.models.checkpoints.find_spec", lambda _name: None)
    assert f"pip install {method}" in refused(saved(quantization_config=config))


def test_fine_grained_fp8_is_unpacked(saved):
    """Blocks of 16 x 16 with a scale each, as DeepSeek publishes them."""
    model, weights = small(), {}
    for name, weight in weights_of(model).items():
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.Linear) or name.startswith("lm_head"):
            weights[name] = weight
            continue
        rows, columns = (n // 16 for n in weight.shape)
        blocks = weight.reshape(rows, 16, columns, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        stored = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        weights[name], weights[f"{name}_scale_inv"] = stored, scale
        module.weight.data = (stored.float().reshape(blocks.shape) * scale[:, None, :, None]).reshape(weight.shape)
    config = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    folder = str(saved(weights, quantization_config=config))
    found, origin = load_model(folder, CPU)
    assert origin.remarks == ("its weights are stored as fp8 and were unpacked to float32",)
    on_disk, _ = load_model(folder, LoadOptions(dtype="float32", device_map="cpu=0KB"))
    assert ModelIdentity.of(on_disk) == ModelIdentity.of(found)
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}
    np.testing.assert_allclose(logps(found), logps(model), atol=1e-4)
    assert np.abs(logps(found) - logps(small())).max() > 1e-4
