"""What must never happen: code of others that runs, files written through links, sockets, texts in tracebacks."""

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from commands import run_ltmia, run_script
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.errors import ConfigError, ModelError, StoreError
from ltmia.evaluation.audit_folder import MARKED
from ltmia.evaluation.files import read_results, write_results
from ltmia.features.columns import EXPECTATIONS
from ltmia.features.journal import StoredText
from ltmia.features.statistics import empty_statistics, named_statistics
from ltmia.features.store import FeatureStore, StoreWriter
from ltmia.folders import mark_folder
from ltmia.lab.reading import read_recipe
from ltmia.models.loading import load_pair
from ltmia.ownership import Marker
from ltmia.records import Expectation
from ltmia.report.page import write_report
from report_samples import made_up_audit

CPU = {"dtype": "float32", "device": "cpu"}


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.flag,)


def pickled(flag: Path) -> bytes:
    return pickle.dumps(Bomb(flag))


def object_array(flag: Path) -> bytes:
    """A .npy file of dtype object: numpy unpickles it when told to."""
    path = flag.with_suffix(".npy")
    np.save(path, np.array([Bomb(flag)], object), allow_pickle=True)
    return path.read_bytes()


def test_the_bombs_are_live(tmp_path: Path) -> None:
    """Or the tests below would pass whatever is loaded."""
    pickle.loads(pickled(tmp_path / "a"))
    object_array(tmp_path / "b")
    np.load(tmp_path / "b.npy", allow_pickle=True)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize("bomb", [pickled, object_array])
@pytest.mark.parametrize("name", ["tokens.f16", "expected.f16", "texts.parquet", "manifest.json"])
def test_nothing_in_a_store_is_unpickled(tmp_path: Path, name: str, bomb: Callable[[Path], bytes]) -> None:
    store = small_store(tmp_path / "store")
    (store / name).write_bytes(bomb(tmp_path / "ran"))
    with pytest.raises(StoreError):
        FeatureStore(store)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bomb", [pickled, object_array])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_nothing_in_a_classifier_is_unpickled(tmp_path: Path, name: str, bomb: Callable[[Path], bytes]) -> None:
    shipped_classifier().save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier" / name).write_bytes(bomb(tmp_path / "ran"))
    with pytest.raises(StoreError):
        MembershipClassifier.from_pretrained(tmp_path / "classifier")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(demo_base_path(), tmp_path / "model")
    return tmp_path / "model"


def test_pickles_beside_a_model_are_left_alone(model: Path, tmp_path: Path) -> None:
    names = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "adapter_model.bin", "model.pkl")
    for name in names:
        (model / name).write_bytes(pickled(tmp_path / "ran"))
    (model / "tokens.npy").write_bytes(object_array(tmp_path / "ran"))
    load_pair(model, demo_base_path(), **CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["{}/pytorch_model.safetensors", "../outside.safetensors", "deep/one.safetensors"])
def test_an_index_of_weights_cannot_lead_out_of_its_folder(model: Path, tmp_path: Path, place: str) -> None:
    outside = place.format(tmp_path)
    shutil.copy(model / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": outside}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="beside it only, found") as refused:
        load_pair(model, demo_base_path(), **CPU)
    assert outside in str(refused.value)


OWN_CODE = """
from pathlib import Path
Path({flag!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class OwnConfig(GPT2Config):
    model_type = "own"
class Own(GPT2LMHeadModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_in_a_hub_repo_runs_only_by_flag(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (model / "own.py").write_text(OWN_CODE.format(flag=str(tmp_path / "ran")))
    if part == "model":
        code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
        rewrite(model / "config.json", auto_map=code, model_type="own", architectures=["Own"])
    else:
        code = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        rewrite(model / "tokenizer_config.json", auto_map=code, tokenizer_class="OwnTokenizer")
    place = tmp_path / "cache" / "models--org--own"
    shutil.copytree(model, place / "snapshots" / ("1" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1" * 40)
    # The tokens of a tokenizer can be read without its code.
    refusal = (
        pytest.raises(ModelError, match="only with `trust_remote_code=True`") if part == "model" else nullcontext()
    )
    with refusal:
        load_pair("org/own", demo_base_path(), **CPU)
    assert not (tmp_path / "ran").exists()
    load_pair("org/own", demo_base_path(), trust_remote_code=True, **CPU)
    assert (tmp_path / "ran").exists()


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_the_report_says_that_a_models_own_code_was_run(tmp_path: Path) -> None:
    results = read_results(made_up_audit(tmp_path, 40))
    assert "ran its own code" not in write_report(tmp_path).read_text("utf-8")
    target = results.target.model_copy(update={"trust_remote_code": True})
    write_results(results.model_copy(update={"target": target}), tmp_path)
    assert "ran its own code" in write_report(tmp_path).read_text("utf-8")


def small_store(folder: Path) -> Path:
    writer = StoreWriter(folder, fingerprint="f", k=2, vocab_size=9)
    tokens = named_statistics(tuple(np.zeros_like(column) for column in empty_statistics(3, 2)))
    writer.append(tokens, [StoredText(row=0, n_tokens=3, scores={"loss": 0.0})])
    nothing = np.zeros(3, np.float32)
    expectation = Expectation(log_ratio=nothing, token_count=nothing, pair_count=nothing, spread=np.ones_like(nothing))
    writer.finish({"id": ["a"]}, {}, dict.fromkeys(EXPECTATIONS, expectation))
    return folder


@pytest.mark.parametrize("name", ["tokens.f16", "expected.f16", "expected_lite.f16", "texts.parquet", "manifest.json"])
def test_a_store_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    store = small_store(tmp_path / "store")
    (store / name).rename(tmp_path / name)
    (store / name).symlink_to(Path("..") / name)
    with pytest.raises(StoreError, match="a link"):
        FeatureStore(store)


@pytest.mark.parametrize(
    "name",
    [
        "tokens.f16",
        "expected.f16",
        "expected_lite.f16",
        "texts.parquet",
        "manifest.json",
        "journal.jsonl",
        "manifest.json.ltmia-part",
    ],
)
def test_a_store_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"fingerprint": "f"}\n')
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(victim)
    assert len(FeatureStore(small_store(tmp_path / "store"))) == 1
    assert victim.read_text() == '{"fingerprint": "f"}\n'


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".hidden", "a\\nb"])
def test_names_in_a_recipe_cannot_lead_out_of_the_lab(tmp_path: Path, name: str) -> None:
    text = f'[corpora.{json.dumps(name)}]\npath = "embedded"\n[bases.demo]\npath = "embedded"\n'
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError, match="corpora"):
        read_recipe(tmp_path / "recipe.toml")


def test_an_audit_writes_through_no_link_in_its_folder(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("untouched")
    texts = demo_texts().texts
    write_lines(tmp_path / "members.jsonl", texts[:6])
    write_lines(tmp_path / "nonmembers.jsonl", texts[60:70])
    mark_audit(out)
    (out / "private" / "store").mkdir(parents=True)
    names = (
        "results.json",
        "records.parquet",
        "report.html",
        "private/store/texts.parquet",
        "private/run.json.ltmia-part",
    )
    for name in (*names, ".holder", ".lock"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(victim)
        assert audit(tmp_path, "--attacks", "loss").returncode == 2
        assert victim.read_text() == "untouched"
        (out / name).unlink()
    for name in ("results.json.ltmia-part", "records.parquet.ltmia-part", "report.html.ltmia-part"):
        (out / name).symlink_to(victim)
    done = audit(tmp_path, "--attacks", "loss")
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "untouched"
    assert read_results(out).data.n_members == 6


def mark_audit(folder: Path) -> None:
    """Make a folder that says it is for an audit."""
    folder.mkdir()
    mark_folder(folder, Marker(kind=MARKED["audit"]))


def write_lines(path: Path, texts: tuple[str, ...]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def audit(folder: Path, *more: str):
    base = str(demo_base_path())
    texts = ("--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl", "--max-length", "24")
    return run_ltmia("audit", base, "--base", base, *texts, "-o", "out", "--quiet", *more, cwd=folder)


WATCHED = """
import sys, socket
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = False  # nothing but the absence of a reason to ask keeps it from asking
opened = []
def watch(event, arguments):
    if event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6):
        opened.append(arguments[1:])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.bind"):
        opened.append(event)
sys.addaudithook(watch)
from typer.testing import CliRunner
from ltmia.cli.app import app
base = sys.argv[1]
models, sets = [base, "--base", base], ["--nonmembers", "nonmembers.jsonl", "--max-length", "24"]
for command in (
    ["doctor", *models],
    ["audit", *models, "--members", "members.jsonl", *sets, "-o", "audit"],
    ["score", *models, "--candidates", "members.jsonl", *sets, "-o", "score"],
    ["report", "audit"],
    ["compare", "audit", "audit"],
    ["gate", "audit", "--max", "auc:1"],
    ["attacks"],
):
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    print(command[0], done.exit_code, opened)
    if "--provoke" in sys.argv:
        socket.create_server(("127.0.0.1", 0)).close()
assert not opened, opened
"""


def test_work_on_folders_opens_no_socket(tmp_path: Path) -> None:
    write_lines(tmp_path / "members.jsonl", demo_texts().texts[:6])
    write_lines(tmp_path / "nonmembers.jsonl", demo_texts().texts[60:70])
    (tmp_path / "watched.py").write_text(WATCHED)
    done = run_script(tmp_path / "watched.py", str(demo_base_path()), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = dict(line.split()[:2] for line in done.stdout.splitlines())
    assert codes == {
        "doctor": "0", "audit": "0", "score": "0", "report": "0", "compare": "0", "gate": "3", "attacks": "0",
    }  # fmt: skip


SECRET = "the patient of room seven"
QUOTED = json.dumps(SECRET)
BROKEN = {
    "cut.jsonl": '{"text": ' + QUOTED[:-1],
    "list.jsonl": f'{{"text": [{QUOTED}]}}',
    "object.jsonl": f'{{"text": {{"said": {QUOTED}}}}}',
    "array.jsonl": f"[{QUOTED}]",
    "other.jsonl": f'{{"body": {QUOTED}}}',
    "bytes.jsonl": b'{"text": "' + SECRET.encode() + b' \xff"}',
    "quote.csv": f'text\n"{SECRET}" "again"\n',
    "fields.csv": f'text,id\n"{SECRET}",1,2\n',
    "twice.jsonl": f'{{"id": 1, "text": {QUOTED}}}\n{{"id": 1, "text": {QUOTED}}}',
    "cut.parquet": b"PAR1" + SECRET.encode() + b"PAR1",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_traceback_shows_no_text(tmp_path: Path, name: str) -> None:
    content = BROKEN[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_lines(tmp_path / "fine.jsonl", (SECRET,) * 4)
    base = str(demo_base_path())
    texts = ("--members", name, "--nonmembers", "fine.jsonl", "--id-column", "id")
    done = run_ltmia("--debug", "audit", base, "--base", base, *texts, "-o", "out", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_traceback_from_the_middle_of_the_work_shows_no_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "members.jsonl", (f"{SECRET} one", f"{SECRET} two"))
    write_lines(tmp_path / "nonmembers.jsonl", (f"{SECRET} three", f"{SECRET} four"))
    mark_audit(tmp_path / "out")
    (tmp_path / "out" / "private" / "store" / "tokens.f16").mkdir(parents=True)  # no file can be written there
    done = audit(tmp_path, "--debug")
    assert "Traceback" in done.stderr
    assert "IsADirectoryError" in done.stderr
    assert SECRET not in done.stdout + done.stderr
