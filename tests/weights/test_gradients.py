"""Per-text gradients against each text run alone, for every layer, adapter, batch and point of the path."""

import contextlib

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from disks import mounted, remount
from gradient_oracles import TOKENIZER, by_definition, close, moved_pair, small, some_texts
from ltmia.errors import ModelError, StoreError
from ltmia.finetuning.lora import add_lora
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.models.weight_delta import changed_matrices, model_between, run_model
from ltmia.weights.backward import TextGradients
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.gradient_file import GradientFile, GradientShape
from ltmia.weights.gradients import GradientReader

KINDS = ("llama", "gpt2", "gpt_neo", "qwen2", "gemma", "gpt_neox", "bloom", "mamba", "recurrent_gemma", "rwkv")


def adapter_pair(model_type="llama", **more):
    base = small(model_type)
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **more))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter) * 0.1)
    return Pair(target=tuned.eval(), tokenizer=TOKENIZER)


def as_read(pair, texts, point=1.0, **draw):
    coordinates = choose_coordinates(pair, **({"n_coordinates": 300, "n_layers": 2, "seed": 0} | draw))
    with (
        model_between(pair, point) as runner,
        TextGradients(run_model(pair, point), runner, coordinates.places, batched=coordinates.batched) as gradients,
    ):
        parts = [[text] for text in texts] if not coordinates.batched else [texts]
        return coordinates, torch.cat([gradients([t.ids for t in part], [t.start for t in part]) for part in parts])


def expected(pair, coordinates, texts, point=1.0):
    with model_between(pair, point):
        model = run_model(pair, point)
        rows = [[by_definition(model, place.name, text).reshape(-1)[place.flat] for place in coordinates.places]
                for text in texts]  # fmt: skip
        return torch.stack([torch.cat(row) for row in rows])


@pytest.mark.parametrize("model_type", KINDS)
def test_gradients_of_a_batch_are_those_of_each_text(model_type: str) -> None:
    pair, texts = moved_pair(model_type), some_texts()
    coordinates, found = as_read(pair, texts)
    assert close(found, expected(pair, coordinates, texts))


@pytest.mark.parametrize("point", [0.0, 0.5, 1.0])
def test_a_point_of_the_path_is_that_model(point: float) -> None:
    pair, texts = moved_pair(), some_texts(3)
    before = {name: value.clone() for name, value in pair.target.state_dict().items()}
    coordinates, found = as_read(pair, texts, point)
    between = small()
    with torch.no_grad():
        for ours, a, b in zip(between.parameters(), pair.reference.parameters(), pair.target.parameters(), strict=True):
            ours.copy_(a + point * (b - a))
    wanted = [torch.cat([by_definition(between, p.name, text).reshape(-1)[p.flat] for p in coordinates.places])
              for text in texts]  # fmt: skip
    assert close(found, torch.stack(wanted))
    assert all(torch.equal(value, before[name]) for name, value in pair.target.state_dict().items())


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gradients_of_adapters(model_type: str, more: dict) -> None:
    if model_type == "gpt2":
        more = more | {"fan_in_fan_out": True}
    pair, texts = adapter_pair(model_type, **more), some_texts(4)
    for point in (0.5, 1.0):
        coordinates, found = as_read(pair, texts, point)
        assert coordinates.batched
        assert all("lora_B" in place.name for place in coordinates.places)
        assert close(found, expected(pair, coordinates, texts, point))


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapters_path_begins_at_its_base(use_dora: bool) -> None:
    pair, text = adapter_pair(use_dora=use_dora), some_texts(1)[0]
    ids, mask = torch.from_numpy(text.ids)[None], torch.ones(1, len(text.ids), dtype=torch.int64)
    with model_between(pair, 0.0) as runner:
        found = runner.hidden_states(ids, mask)
    assert torch.allclose(found, pair.reference_runner.hidden_states(ids, mask), atol=1e-5)


def test_the_update_is_target_minus_base_at_the_coordinates() -> None:
    pair = moved_pair("gpt2")
    coordinates = choose_coordinates(pair, n_coordinates=200, n_layers=1, seed=3)
    ours, theirs = dict(pair.target.named_parameters()), dict(pair.reference.named_parameters())
    wanted = np.concatenate([(ours[p.name].double() - theirs[p.name].double()).detach().reshape(-1)[p.flat].numpy()
                             for p in coordinates.places])  # fmt: skip
    np.testing.assert_array_equal(coordinates.change, wanted)
    assert coordinates.layers == (2,)
    assert {".".join(p.name.split(".")[3:]) for p in coordinates.places} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
    }  # fmt: skip
    again = choose_coordinates(pair, n_coordinates=200, n_layers=1, seed=3)
    assert again.digest == coordinates.digest
    assert choose_coordinates(pair, n_coordinates=200, n_layers=1, seed=4).digest != coordinates.digest


def test_more_coordinates_than_there_are_is_all_of_them() -> None:
    pair = moved_pair()
    coordinates = choose_coordinates(pair, n_coordinates=10**9, n_layers=99, seed=0)
    assert len(coordinates) == coordinates.n_available == sum(m.target.numel() for m in changed_matrices(pair))
    texts = some_texts(2)
    assert close(as_read(pair, texts, n_coordinates=10**9, n_layers=99)[1], expected(pair, coordinates, texts))
    assert choose_coordinates(pair, n_coordinates=10**9, n_layers=None, seed=0).digest == coordinates.digest


def test_nothing_below_the_lowest_layer_read_keeps_an_activation() -> None:
    pair, texts = moved_pair(n_layers=6), some_texts(3)

    def kept(n_layers):
        coordinates, count = choose_coordinates(pair, n_coordinates=300, n_layers=n_layers, seed=0), []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: count.append(x.numel()) or x, lambda x: x)
        with TextGradients(pair.target, pair.target_runner, coordinates.places, batched=True) as gradients, keep:
            gradients([text.ids for text in texts], [text.start for text in texts])
        return sum(count)

    one, two, six = (kept(n) for n in (1, 2, 6))
    assert six - one == pytest.approx(5 * (two - one), rel=0.01)
    assert two > one


def test_rounding_noise_is_that_of_the_format() -> None:
    exact, rounded = moved_pair(), moved_pair(dtype=torch.bfloat16)
    draw = {"n_coordinates": 10**9, "n_layers": 99, "seed": 0}
    assert not choose_coordinates(exact, **draw).rounding.any()
    coordinates = choose_coordinates(rounded, **draw)
    target = np.concatenate([dict(exact.target.named_parameters())[p.name].detach().reshape(-1)[p.flat].numpy()
                             for p in coordinates.places])  # fmt: skip
    stored = torch.from_numpy(target).bfloat16().float().numpy()
    assert np.mean((stored - target) ** 2) == pytest.approx(coordinates.rounding.mean(), rel=0.05)


def _folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.f16")}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, texts = moved_pair(), some_texts(9)
    monkeypatch.setattr("ltmia.models.batching.MOST_TOKENS", {"cpu": 24})
    coordinates = choose_coordinates(pair, n_coordinates=100, n_layers=2, seed=0)

    def run(folder, report=lambda *_: None, identity="a"):
        file = GradientReader(pair, texts, coordinates, (0.0, 1.0), folder, identity=identity).finish(report)
        file.close()
        return file

    class Killed(BaseException):
        pass

    def kill(_task, done, _total):
        if done > 6:
            raise Killed

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", kill)
    journal = tmp_path / "cut" / "journal.jsonl"
    assert 2 < len(journal.read_text().splitlines()) < 8
    with journal.open("a") as file:  # a torn line, and a batch that says more than is on disk
        file.write(journal.read_text().splitlines()[1].replace('"point": 0', '"point": 1') + '\n{"rows": [0')
    resumed = run(tmp_path / "cut")
    assert _folder_bytes(tmp_path / "cut") == _folder_bytes(tmp_path / "whole")
    np.testing.assert_array_equal(resumed.scales, whole.scales)

    calls = []
    monkeypatch.setattr(TextGradients, "with_states", lambda *_: calls.append(1))
    run(tmp_path / "cut")
    assert not calls
    with pytest.raises(TypeError):  # other models: computed anew, by what stands in for the model here
        run(tmp_path / "cut", identity="b")
    assert calls


def test_a_full_disk_is_named_by_the_gradients_and_with_room_they_go_on(tmp_path) -> None:
    shape = GradientShape(n_texts=8, n_points=1, n_coordinates=50_000)
    row = np.ones((1, 50_000), np.float32)

    def append_all(file):
        for i in range(8):
            file.append(0, [i], row * i)

    with mounted(tmp_path / "disk", "size=512k") as disk:
        file = GradientFile(disk / "gradients", shape, "a")
        with pytest.raises(StoreError, match=f"^{disk}/gradients: "):
            append_all(file)
        with contextlib.suppress(StoreError):
            file.close()
        remount(disk, "size=4m")
        again = GradientFile(disk / "gradients", shape, "a")
        done = [i for i in range(8) if again.is_done(0, i)]
        assert 0 < len(done) < 8
        append_all(again)
        np.testing.assert_allclose(again.block(0, np.arange(8), slice(0, 2))[:, 1], np.arange(8), rtol=1e-3)
        again.close()


def test_stored_gradients_are_those_of_the_texts_to_half_precision(tmp_path) -> None:
    pair, texts = moved_pair(), [*some_texts(6), EncodedText(ids=np.array([3]), reason="too short")]
    coordinates = choose_coordinates(pair, n_coordinates=150, n_layers=2, seed=0)
    file = GradientReader(pair, texts, coordinates, (1.0,), tmp_path, identity="a").finish()
    wanted = expected(pair, coordinates, texts[:6]).numpy()
    found = file.block(0, np.arange(6), slice(0, 150))
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5 * np.abs(wanted).max())
    assert np.isnan(file.scales[0, 6])


def test_what_cannot_be_read_is_refused_with_the_reason() -> None:
    base = small()
    draw = {"n_coordinates": 10, "n_layers": 1, "seed": 0}
    with pytest.raises(ModelError, match="no update to read"):
        choose_coordinates(Pair(target=small(), reference=base, tokenizer=TOKENIZER), **draw)
    with pytest.raises(ModelError, match="really its base"):
        choose_coordinates(Pair(target=small("gpt2"), reference=base, tokenizer=TOKENIZER), **draw)
    with pytest.raises(ModelError, match="no update to read"):
        choose_coordinates(Pair(target=add_lora(small(), rank=2, alpha=2, seed=0), tokenizer=TOKENIZER), **draw)
    started = adapter_pair(init_lora_weights="olora")
    with pytest.raises(ModelError, match="olora"):
        choose_coordinates(started, **draw)


def test_parameters_ask_for_gradients_as_before() -> None:
    pair = moved_pair()
    before = [parameter.requires_grad for parameter in pair.target.parameters()]
    as_read(pair, some_texts(2))
    assert [parameter.requires_grad for parameter in pair.target.parameters()] == before
    assert all(parameter.grad is None for parameter in pair.target.parameters())
