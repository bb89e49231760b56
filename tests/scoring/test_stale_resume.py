"""One thing of the inputs changed, the same folder: nothing is used again, and the scores are those of the new inputs.

The right value comes from a plain loop over transformers and PEFT, a text at a time.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltmia.data.reading import read_texts
from ltmia.data.recordings import Recording
from ltmia.errors import ConfigError, ModelError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.chat import chat_template
from ltmia.models.identity import ModelIdentity, tokenizer_sha256
from ltmia.models.loading import LoadOptions, load_alone, load_pair
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractionConfig
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.recording import RecordConfig, record_model
from ltmia.scoring.stored_scores import ScoringTask, StoredTexts, score_to_store

TEXTS = (
    "The lamp burns low in the harbour.",
    "Crate nine of the cargo holds a letter and a map of the coast.",
    "Snow on the pier, and the boats are in.",
    "Nobody came by THE road that winter.",
)
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@dataclass
class Inputs:
    """What is scored and how; a test changes one thing of it."""

    folder: Path
    target: str = "target"
    texts: tuple[str, ...] = TEXTS
    max_length: int = 48
    dtype: str = "float32"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def target_path(self) -> Path:
        return self.folder / self.target

    def rewrite(self, names: tuple[str, ...], file: str, **changes: Any) -> None:
        for name in names:
            path = self.folder / name / file
            path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")

    def tokenizers(self, change: Callable[[Tokenizer], None]) -> None:
        for name in ("target", "base", "adapter"):
            path = str(self.folder / name / "tokenizer.json")
            tokenizer = Tokenizer.from_file(path)
            change(tokenizer)
            tokenizer.save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    shape = TinyConfig(model_type="llama", vocab_size=310, hidden_size=16, n_layers=1, n_heads=2)
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", TEMPLATE
    for name, seed in (("base", 1), ("target", 2)):
        model = build_base(shape, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), lora(8))
    fill(adapted, "default", 0.2)
    adapted.save_pretrained(root / "adapter")
    tokenizer.save_pretrained(root / "adapter")
    return root


def lora(alpha: int) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=alpha, target_modules=["q_proj", "up_proj"])


def fill(model: PeftModel, adapter: str, value: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{adapter}" in name:
                parameter.fill_(value)


@pytest.fixture
def inputs(made: Path, tmp_path: Path) -> Inputs:
    shutil.copytree(made, tmp_path / "models")
    given = Inputs(tmp_path / "models")
    given.rewrite(("adapter",), "adapter_config.json", base_model_name_or_path=str(given.base))
    return given


def plain_model(inputs: Inputs, path: Path) -> Any:
    dtype = getattr(torch, inputs.dtype)
    if (path / "adapter_config.json").exists():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs.base, dtype=dtype), path).eval()
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@torch.no_grad()
def plain_loss(inputs: Inputs, model: Any) -> np.ndarray:
    """Mean negative log-probability of each text's tokens behind the first."""
    tokenizer, found = AutoTokenizer.from_pretrained(inputs.target_path), []
    for text in inputs.texts:
        ids = torch.tensor(tokenizer(text)["input_ids"][: inputs.max_length])
        logp = model(ids[None]).logits[0].float().log_softmax(-1)
        found.append(-float(logp[:-1].gather(1, ids[1:, None]).mean()))
    return np.array(found)


def expected(inputs: Inputs) -> np.ndarray:
    """What `difference` is: the base's loss minus the target's."""
    losses = [plain_loss(inputs, plain_model(inputs, path)) for path in (inputs.base, inputs.target_path)]
    return losses[0] - losses[1]


def named(inputs: Inputs) -> Texts:
    return Texts(texts=inputs.texts, ids=tuple(f"t{i}" for i in range(len(inputs.texts))))


def score(inputs: Inputs, pair: Pair | None = None) -> StoredTexts:
    pair = pair or load_pair(inputs.target_path, inputs.base, dtype=inputs.dtype, device="cpu")
    config = ExtractionConfig(attacks=("difference",), k=4, max_length=inputs.max_length, expectations=())
    out = inputs.folder / "out"
    task = ScoringTask(texts=named(inputs), folder=out, config=config, identity=PairIdentity.of(pair))
    return score_to_store(LoadedPair(pair), task)


def set_dtype(inputs: Inputs) -> None:
    inputs.dtype = "bfloat16"


def set_length(inputs: Inputs) -> None:
    inputs.max_length = 6


def set_text(inputs: Inputs) -> None:
    inputs.texts = (*TEXTS[:3], TEXTS[3] + " Not a soul.")


def move_weights(inputs: Inputs, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs.folder / name)
    with torch.no_grad():
        model.lm_head.weight[7:200] *= 30
    model.save_pretrained(inputs.folder / name)


def put_bos_first(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )


def add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens(["the har", "a letter"])


def lower(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


BOTH, ALL = ("target", "base"), ("target", "base", "adapter")
CHANGES: dict[str, Callable[[Inputs], None]] = {
    "activation": lambda i: i.rewrite(BOTH, "config.json", hidden_act="relu"),
    "norm epsilon": lambda i: i.rewrite(BOTH, "config.json", rms_norm_eps=0.5),
    "rope theta": lambda i: i.rewrite(BOTH, "config.json", rope_parameters={"rope_theta": 3.0, "rope_type": "default"}),
    "normaliser": lambda i: i.tokenizers(lower),
    "post-processor": lambda i: i.tokenizers(put_bos_first),
    "added tokens": lambda i: i.tokenizers(add_tokens),
    "max_length": set_length,
    "dtype": set_dtype,
    "a text": set_text,
    "weights of the target": lambda i: move_weights(i, "target"),
    "weights of the base": lambda i: move_weights(i, "base"),
}
OF_THE_ADAPTER: dict[str, Callable[[Inputs], None]] = {
    "lora_alpha": lambda i: i.rewrite(("adapter",), "adapter_config.json", lora_alpha=0.001),
    "use_rslora": lambda i: i.rewrite(("adapter",), "adapter_config.json", use_rslora=True),
    "weights below it": lambda i: move_weights(i, "base"),
}
IN_BOTH_MATRICES = [("target", name) for name in CHANGES] + [("adapter", name) for name in OF_THE_ADAPTER]


@pytest.mark.parametrize(("target", "change"), IN_BOTH_MATRICES)
def test_after_a_change_nothing_of_the_store_is_used_again(inputs: Inputs, target: str, change: str) -> None:
    inputs.target = target
    before = score(inputs)
    assert before.clock.reused == []
    np.testing.assert_allclose(before.scores["difference"], expected(inputs), atol=1e-4)
    (CHANGES | OF_THE_ADAPTER)[change](inputs)
    after, wanted = score(inputs), expected(inputs)
    assert after.clock.reused == []
    tolerance = 1e-4 if inputs.dtype == "float32" else 0.15
    np.testing.assert_allclose(after.scores["difference"], wanted, atol=tolerance)
    least = 1e-3 if inputs.dtype == "float32" else 0
    assert np.abs(wanted - before.scores["difference"]).max() > least, "the change must change a number"
    again = score(inputs)
    assert [(found.what, found.n_texts) for found in again.clock.reused] == [("store", len(TEXTS))]
    np.testing.assert_array_equal(again.scores["difference"], after.scores["difference"])


@pytest.mark.parametrize(("target", "change"), [row for row in IN_BOTH_MATRICES if row[1] != "weights of the base"])
def test_after_a_change_nothing_of_a_recording_is_used_again(inputs: Inputs, target: str, change: str) -> None:
    out = inputs.folder / "said.jsonl"

    def record(overwrite: bool = False) -> np.ndarray:
        pair = load_alone(inputs.target_path, options=LoadOptions(dtype=inputs.dtype, device="cpu"))
        record_model(pair, named(inputs), out, config=RecordConfig(max_length=inputs.max_length), overwrite=overwrite)
        return np.array([-np.mean(text.logp) for text in Recording(out)])

    inputs.target = target
    before = record()
    (CHANGES | OF_THE_ADAPTER)[change](inputs)
    with pytest.raises(ConfigError, match="a recording of another model, other texts or other settings"):
        record()
    wanted, found = plain_loss(inputs, plain_model(inputs, inputs.target_path)), record(overwrite=True)
    np.testing.assert_allclose(found, wanted, atol=1e-4 if inputs.dtype == "float32" else 0.15)
    assert np.abs(found - before).max() > (1e-3 if inputs.dtype == "float32" else 0)
    written = out.stat().st_mtime_ns
    record()
    assert out.stat().st_mtime_ns == written, "the same work was done again"


def test_another_active_adapter_is_another_target(inputs: Inputs) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs.base), inputs.folder / "adapter")
    model.add_adapter("other", lora(30))
    fill(model, "other", -0.1)
    tokenizer = AutoTokenizer.from_pretrained(inputs.base)
    found = []
    for name in ("default", "other"):
        model.set_adapter(name)
        pair = load_pair(model.eval(), tokenizer=tokenizer)
        assert PairIdentity.of(pair).target.adapter.active == [name]
        assert PairIdentity.of(pair).reference.adapter.active == []
        scored = score(inputs, pair)
        assert scored.clock.reused == []
        with model.disable_adapter():
            reference = plain_loss(inputs, model)
        np.testing.assert_allclose(scored.scores["difference"], reference - plain_loss(inputs, model), atol=1e-4)
        found.append(scored.scores["difference"])
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("what", ["buffer", "scaling", "hook"])
def test_what_no_file_holds_counts_as_well(inputs: Inputs, what: str) -> None:
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (inputs.target_path, inputs.base)]
    tokenizer = AutoTokenizer.from_pretrained(inputs.base)

    def scored() -> StoredTexts:
        return score(inputs, load_pair(*models, tokenizer=tokenizer))

    before = scored()
    if what == "buffer":
        models[0].model.rotary_emb.inv_freq *= 2.5
    elif what == "scaling":
        models[0].model.layers[0].self_attn.scaling *= 3
    else:
        models[0].model.norm.register_forward_hook(lambda _module, _given, out: 0.5 * out)
    after = scored()
    assert after.clock.reused == []
    wanted = plain_loss(inputs, models[1]) - plain_loss(inputs, models[0])
    np.testing.assert_allclose(after.scores["difference"], wanted, atol=1e-4)
    assert np.abs(wanted - before.scores["difference"]).max() > 1e-3
    assert scored().clock.reused


def test_a_chat_template_decides_what_is_read(inputs: Inputs) -> None:
    file = inputs.folder / "chats.jsonl"
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    found = []
    for sign in ("{{ m['role'] }}: ", ">> "):
        template = TEMPLATE.replace("{{ m['role'] }}: ", sign)
        for name in ALL:
            (inputs.folder / name / "chat_template.jinja").write_text(template, "utf-8")
        inputs.texts = read_texts(file, chat=chat_template(inputs.target_path)).texts
        scored = score(inputs)
        assert scored.clock.reused == []
        plain = AutoTokenizer.from_pretrained(inputs.target_path)
        inputs.texts = tuple(plain.apply_chat_template(chat, tokenize=False) for chat in chats)
        np.testing.assert_allclose(scored.scores["difference"], expected(inputs), atol=1e-4)
        found.append(scored.scores["difference"])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_copies_in_other_folders_are_the_same_models(inputs: Inputs, tmp_path: Path) -> None:
    """Where a model lies does not count, or nothing would ever be used again."""
    shutil.copytree(inputs.folder, tmp_path / "copy")
    for target in ("target", "adapter"):
        pairs = [
            load_pair(folder / target, folder / "base", device="cpu") for folder in (inputs.folder, tmp_path / "copy")
        ]
        assert PairIdentity.of(pairs[0]).key == PairIdentity.of(pairs[1]).key


def test_a_call_of_the_tokenizer_does_not_change_what_it_is(inputs: Inputs) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs.base)
    before = tokenizer_sha256(tokenizer)
    tokenizer(list(TEXTS), padding=True, truncation=True, max_length=5)
    assert tokenizer_sha256(tokenizer) == before


def test_code_that_comes_with_a_model_counts(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(inputs.folder / "modules"))
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    inputs.rewrite(("target",), "config.json", auto_map=code, model_type="own", architectures=["Own"])
    keys = set()
    for factor in (1.0, 0.5):
        (inputs.target_path / "modeling_own.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
            "    def forward(self, *given, **named):\n        out = super().forward(*given, **named)\n"
            f"        out.logits = {factor} * out.logits\n        return out\n"
        )
        model = AutoModelForCausalLM.from_pretrained(inputs.target_path, trust_remote_code=True)
        keys.add(ModelIdentity.of(model).key)
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["tokens.f16", "texts.parquet", "manifest.json"])
def test_a_damaged_store_is_made_again_and_the_file_named(
    inputs: Inputs, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = score(inputs)
    rows = before.store.statistics([0]).tokens.target_logp.copy()
    file = inputs.folder / "out" / name
    content = file.read_bytes()
    third = len(content) // 3
    file.write_bytes(content[:third] + bytes(third) + content[2 * third :])
    with caplog.at_level(logging.WARNING):
        after = score(inputs)
    assert name in caplog.text
    assert after.clock.reused == []
    np.testing.assert_array_equal(after.scores["difference"], before.scores["difference"])
    np.testing.assert_array_equal(after.store.statistics([0]).tokens.target_logp, rows)


def test_weights_that_reading_would_change_are_refused() -> None:
    """bitsandbytes marks 4-bit weights that it packed once more when they ran on a CPU."""
    model = torch.nn.Linear(2, 2)
    model.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(
        ModelError, match=r"weight: 4-bit weights that have run on a CPU.*save the model before it runs"
    ):
        ModelIdentity.of(model)
