"""Every command that writes: what lies in its output is left as it is, unless the command itself made it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from commands import run_ltmia
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.auditing.score import ScoreConfig, score
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError
from ltmia.models.loading import load_pair
from ltmia.progress import Report, silent
from ltmia.scoring.audited_pair import PairToLoad
from planted_stores import make_store

SMOKE = str(Path(__file__).parents[1] / "recipes" / "smoke.toml")
SETS = ("--members", "train.jsonl", "--nonmembers", "held-out.jsonl", "--attacks", "loss", "--max-length", "16")
CANDIDATES = ("--candidates", "train.jsonl", "--nonmembers", "held-out.jsonl", "--attack", "difference")
MODELS = ("my-model", "--base", "my-base")
TRAINING = ("--texts", "train.jsonl", "--epochs", "1", "--max-length", "16")
COMMANDS = {
    "finetune": ("finetune", "my-base", *TRAINING),
    "audit": ("audit", *MODELS, *SETS),
    "score": ("score", *MODELS, *CANDIDATES),
    "record": ("record", "my-base", "--texts", "train.jsonl"),
    "demo": ("demo",),
    "lab": ("lab", "run", SMOKE, "--workers", "1"),
    "train": ("train", "stores", "--epochs", "1"),
    "evaluate": ("evaluate", "full", "stores"),
}
WITHOUT_OVERWRITE = ("lab",)
FOREIGN = {
    ".git/HEAD": "ref: refs/heads/main",
    "thesis.txt": "years of work",
    "results.json": "{}",
    "model.safetensors": "mine",
    "private/store/tokens.f16": "mine",
    "records.parquet": "mine",
    "report.html": "mine",
    "private/run.json": "{}",
    "plan.json": "[]",
    "target/model.safetensors": "mine",
}


@pytest.fixture(scope="module")
def work(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the materials, with stores to train on, and an audit and a model of these tests."""
    folder = tmp_path_factory.mktemp("outputs") / "work"
    shutil.copytree(materials, folder, ignore=shutil.ignore_patterns("audit", "my-model"))
    shutil.copytree(folder / "my-base", folder / "my-model")
    for i, name in enumerate(("a", "b")):
        make_store(folder / "stores" / name, gain=1.0, seed=i)
    for name in ("audit", "finetune"):
        done = run_ltmia(*COMMANDS[name], "-o", f"our-{name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return what every file holds; None for a folder."""
    paths = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_somebody_else_is_refused_and_not_touched(
    name: str, overwrite: bool, work: Path, tmp_path: Path
) -> None:
    if overwrite and name in WITHOUT_OVERWRITE:
        pytest.skip("the command has no --overwrite")
    out = tmp_path / ("out.jsonl" if name == "record" else "out")
    for place, content in FOREIGN.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(content)
    before = contents(tmp_path)
    done = run_ltmia(*COMMANDS[name], "-o", str(out), *(("--overwrite",) if overwrite else ()), cwd=work)
    assert done.returncode == 2, done.stdout
    assert str(out) in done.stderr
    assert "Nothing was changed" in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("audit", "my-model"),
        ("audit", "my-base/inside"),
        ("audit", "soft/inside"),
        ("score", "train.jsonl"),
        ("finetune", "my-base"),
        ("finetune", "soft"),
        ("record", "train.jsonl"),
        ("record", "hard.jsonl"),
    ],
)
def test_an_input_is_no_output(name: str, out: str, work: Path) -> None:
    if not (work / "soft").exists():
        (work / "soft").symlink_to("my-base")
        os.link(work / "train.jsonl", work / "hard.jsonl")
    before = contents(work)
    done = run_ltmia(*COMMANDS[name], "-o", out, "--overwrite", cwd=work)
    assert done.returncode == 2, done.stdout
    assert "which is read here" in done.stderr
    assert contents(work) == before


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("audit", ("--members", "candidates.jsonl"), "of other texts, ids."),
        ("audit", ("--group-column", "document"), "of other groups."),
        ("audit", ("--base", "my-model"), 'other settings: base ("../my-base" there, "../my-model" now).'),
        ("audit", ("--seed", "1"), "other settings: seed (0 there, 1 now)."),
        ("finetune", ("--texts", "held-out.jsonl"), "other settings: texts."),
        ("finetune", ("--epochs", "2"), "other settings: epochs (1 there, 2 now)."),
    ],
)
def test_other_work_does_not_take_the_place_of_ours_without_a_word(
    name: str, changed: tuple[str, ...], message: str, work: Path
) -> None:
    before = contents(work / f"our-{name}")
    done = run_ltmia(*COMMANDS[name], *changed, "-o", f"our-{name}", cwd=work)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "--overwrite" in done.stderr
    assert contents(work / f"our-{name}") == before


@pytest.mark.parametrize("name", ["audit", "finetune"])
def test_told_to_it_takes_the_place_and_leaves_what_lies_beside(name: str, work: Path, tmp_path: Path) -> None:
    out = work / tmp_path.name  # beside the original: models are named by their way from the folder
    shutil.copytree(work / f"our-{name}", out)
    for place in ("notes/thesis.txt", "thesis.txt", ".git/HEAD"):
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text("mine")
    same = run_ltmia(*COMMANDS[name], "-o", str(out), cwd=work)
    assert same.returncode == 0, same.stderr
    other = run_ltmia(*COMMANDS[name], "--seed", "1", "-o", str(out), "--overwrite", cwd=work)
    assert other.returncode == 0, other.stderr
    assert json.loads((out / ".ltmia.json").read_text())["settings"]["seed"] == 1
    assert all((out / place).read_text() == "mine" for place in ("notes/thesis.txt", "thesis.txt", ".git/HEAD"))


@pytest.mark.parametrize("name", ["private", "private/store", "private/multi_pass"])
def test_a_link_in_place_of_our_folder_is_not_followed(name: str, work: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(work / "our-audit", out)
    shutil.rmtree(out / name, ignore_errors=True)
    elsewhere.mkdir()
    (elsewhere / "tokens.f16").write_text("mine")
    (out / name).symlink_to(elsewhere)
    attacks = ("--attacks", "loss,lowercase", "--overwrite")
    done = run_ltmia(*COMMANDS["audit"], *attacks, "-o", str(out), cwd=work)
    assert done.returncode == 2, done.stdout
    assert f"{name}: a link" in done.stderr
    assert contents(elsewhere) == {"tokens.f16": b"mine"}


def test_an_overwriting_run_that_is_killed_leaves_the_old_results_aside_and_is_gone_on_with(
    work: Path, tmp_path: Path
) -> None:
    out = work / tmp_path.name
    shutil.copytree(work / "our-audit", out)
    old = (out / "results.json").read_bytes()
    pair = load_pair(work / "my-model", work / "my-base", dtype="float32", device="cpu")
    texts = [read_texts(work / name) for name in ("train.jsonl", "held-out.jsonl")]

    def other(report: Report = silent, *, overwrite: bool = False) -> AuditResult:
        config = AuditConfig(attacks="loss", max_length=16, seed=1, overwrite=overwrite)
        return audit(pair, *texts, out, config=config, report=report)

    def kill(what: str, _done: int, _of: int) -> None:
        if what == "scoring":
            raise KeyboardInterrupt

    with pytest.raises(ConfigError, match="other settings: "):
        other()
    assert (out / "results.json").read_bytes() == old
    (out / "private" / "store" / "manifest.json").unlink()  # so that something is scored
    with pytest.raises(KeyboardInterrupt):
        other(kill, overwrite=True)
    assert (out / "private" / "previous" / "results.json").read_bytes() == old
    assert run_ltmia("gate", str(out), "--max", "auc:1").returncode == 2
    before = run_ltmia(*COMMANDS["audit"], "-o", str(out), cwd=work)
    assert before.returncode == 2, "the folder is the new run's"
    assert other().results.settings["seed"] == 1
    assert "overwrite" not in other().results.settings


def test_without_its_private_part_a_folder_is_still_ours(work: Path, tmp_path: Path) -> None:
    out = work / tmp_path.name
    shutil.copytree(work / "our-audit", out)
    shutil.rmtree(out / "private")
    other = run_ltmia(*COMMANDS["audit"], "--seed", "1", "-o", str(out), cwd=work)
    assert other.returncode == 2
    assert "other settings: seed" in other.stderr
    done = run_ltmia(*COMMANDS["audit"], "-o", str(out), cwd=work)
    assert done.returncode == 0, done.stderr


def test_python_refuses_a_folder_of_somebody_else_before_it_loads_models(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    models = PairToLoad(sources=("a", "b"), load=lambda: pytest.fail("loaded"))
    for ask, config in ((audit, AuditConfig(overwrite=True)), (score, ScoreConfig(overwrite=True))):
        with pytest.raises(ConfigError, match="ltmia made this folder"):
            ask(models, ["one"], ["two"], tmp_path, config=config)
    assert contents(tmp_path) == {"results.json": b"mine"}


@pytest.mark.parametrize(
    "command", [("report",), ("gate", "--max", "auc:1"), ("compare",)], ids=["report", "gate", "compare"]
)
def test_commands_on_finished_audits_leave_other_folders_and_pages_alone(
    command: tuple[str, ...], work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results.json", "records.parquet", "report.html"):
        (out / name).write_text("mine")
    folders = [str(out)] * (1 + (command[0] == "compare"))
    before = contents(out)
    assert run_ltmia(command[0], *folders, *command[1:]).returncode == 2
    assert contents(out) == before
    if command[0] == "report":
        for name in ("results.json", "records.parquet"):
            shutil.copy(work / "our-audit" / name, out / name)
        done = run_ltmia("report", str(out))
        assert done.returncode == 2
        assert "report.html: ltmia did not write this" in done.stderr
        assert (out / "report.html").read_text() == "mine"


def test_options_that_were_refused_leave_the_folder_free(work: Path, tmp_path: Path) -> None:
    refused = run_ltmia(*COMMANDS["audit"], "--classifier", "none", "--attacks", "ltmia", "-o", str(tmp_path), cwd=work)
    assert refused.returncode == 2
    done = run_ltmia(*COMMANDS["audit"], "-o", str(tmp_path), cwd=work)
    assert done.returncode == 0, done.stderr
