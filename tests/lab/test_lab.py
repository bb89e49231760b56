"""The lab: recipes, plans, the engine under dying workers, and the smoke recipe from end to end."""

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands import run_ltmia
from ltmia.cli.app import app
from ltmia.errors import ConfigError, DataError, LtmiaError, StoreError
from ltmia.features.store import FeatureStore
from ltmia.folders import hold_folder
from ltmia.lab.engine import LocalEngine, Schedule
from ltmia.lab.plan import make_plan
from ltmia.lab.reading import line_of, read_recipe
from ltmia.lab.run import lab_status, plan_lab, run_lab
from ltmia.lab.steps import Step, TokenizerWork
from ltmia.lab.texts import corpus_texts, draw_texts, pool_buckets
from one_process import OneProcess

RECIPES = Path(__file__).parents[2] / "recipes"
SMOKE = RECIPES / "smoke.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_that_come_along_are_valid(path: Path) -> None:
    assert read_recipe(path).all_combinations()


def test_the_grid_of_the_shipped_classifier_keeps_test_and_training_apart() -> None:
    recipe = read_recipe(RECIPES / "tiny.toml")
    combinations = recipe.all_combinations()
    tested = {c.corpus for c in combinations if recipe.corpora[c.corpus].role == "test"}
    bases = {role: {c.base for c in combinations if (c.corpus in tested) == role} for role in (True, False)}
    assert not bases[True] & bases[False]
    assert len(bases[True] | bases[False]) >= 9
    assert sum(c.corpus not in tested for c in combinations) >= 40
    assert sum(c.corpus in tested for c in combinations) >= 15


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("learning_rate = 1e-3", "learning_rat = 1e-3", 26, "did you mean learning_rate"),
        ("epochs = 2", 'epochs = "2"', 27, "expected"),
        ("n_heads = 2", "n_heads = 7", None, "multiple"),
        ('model_type = "llama"', 'model_type = "lama"', None, "did you mean llama"),
        ('bases = ["demo", "tiny"]', 'bases = ["demo", "tinny"]', 33, "did you mean 'tiny'"),
        ("vocab_size = 512", "vocab_size = true", 19, "expected"),
        ("[corpora.late]", "[corpora.late", None, "not valid TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int | None, message: str
) -> None:
    text = SMOKE.read_text("utf-8")
    assert old in text
    with pytest.raises(ConfigError) as caught:
        read_recipe(written(tmp_path, text.replace(old, new)))
    assert message in str(caught.value)
    changed = text.replace(old, new).splitlines()
    if line is not None:
        named = next(part for part in str(caught.value).splitlines() if message in part)
        found = int(named.split("line ")[1].split(":")[0])
        assert changed[found - 1].startswith(new.split(" =")[0])


def test_the_line_of_a_value_is_that_of_its_key_or_of_the_table_around_it() -> None:
    text = "a = 1\n\n[t.u]\nb = 2\n[[g]]\nx = 1\n[[g]]\nx = 2\n"
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("t", "u", "b")) == 4
    assert line_of(text, ("t", "u", "missing")) == 3
    assert line_of(text, ("g", 1, "x")) == 8
    assert line_of(text, ("nowhere",)) is None


def test_exam_corpora_are_never_pretrained_on(tmp_path: Path) -> None:
    text = SMOKE.read_text("utf-8").replace("[corpora.late]", '[corpora.late]\nrole = "test"')
    text = text.replace('model_type = "llama"', 'model_type = "llama"\ncorpora = ["late"]')
    with pytest.raises(ConfigError, match="test corpus"):
        read_recipe(written(tmp_path, text))


def test_keys_depend_on_content_and_not_on_names_or_places(tmp_path: Path) -> None:
    def keys(text: str, out: str) -> set[str]:
        plan = make_plan(read_recipe(written(tmp_path, text)), tmp_path / out, corpora=tmp_path, bases=tmp_path)
        return {step.key for step in plan.steps if step.kind != "extract"}  # a store bears its name

    text = SMOKE.read_text("utf-8")
    renamed = text.replace("bases.tiny", "bases.other").replace('"tiny"', '"other"')
    assert keys(text, "a") == keys(text, "b") == keys(renamed, "c")
    changed = keys(text.replace("epochs = 2", "epochs = 3"), "d")
    assert len(changed & keys(text, "a")) == 2, "tokenizer and base stay, every fine-tuning is another"


def test_a_plan_lists_each_step_after_those_it_needs_and_only_what_is_missing(tmp_path: Path) -> None:
    plan = make_plan(read_recipe(SMOKE), tmp_path, corpora=tmp_path, bases=tmp_path)
    seen: set[str] = set()
    for step in plan.steps:
        assert seen.issuperset(step.needs)
        seen.add(step.key)
    stores = {step.key for step in plan.steps if step.kind == "extract"}
    left = plan.to_do(frozenset(stores))
    assert [step.kind for step in left] == ["pretrain"] or not [s for s in left if s.kind in ("finetune", "extract")]


@dataclass
class Diary:
    """Writes down what an engine tells."""

    entries: list[tuple[str, str]] = field(default_factory=list)

    def begun(self, step: Step, attempt: int) -> None:
        self.entries.append((f"begun {attempt}", step.name))

    def done(self, step: Step, _seconds: float, _result: object) -> None:
        self.entries.append(("done", step.name))

    def failed(self, step: Step, _seconds: float, error: str, _details: str | None) -> None:
        self.entries.append(("failed: " + error, step.name))

    def skipped(self, step: Step) -> None:
        self.entries.append(("skipped", step.name))


def simple_step(name: str, *needs: str) -> Step:
    work = TokenizerWork(corpora=(), vocab_size=1)
    return Step(kind="tokenizer", name=name, key=name, needs=needs, product=Path(name), work=work)


ACT = """
import os, signal
from dataclasses import dataclass
from ltmia.errors import DataError

@dataclass(frozen=True)
class Simple:
    name: str
    needs: tuple = ()
    key = label = property(lambda self: self.name)

def act(step, folder):
    if step.name.startswith("raise"):
        raise DataError("no texts")
    mark = folder / step.name
    if step.name.startswith("always die") or (step.name.startswith("die") and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": str(os.getpid())}
"""
"""What the engine's workers do, and steps whose names say it. In a file, where new processes find it.

The steps are not a lab's own, with which every new process would load all that a lab can need.
"""


def test_a_failed_step_takes_along_only_those_that_need_it() -> None:
    steps = [simple_step("a"), simple_step("b", "a"), simple_step("c", "b"), simple_step("d")]
    schedule = Schedule(steps)
    assert schedule.next() == steps[0]
    assert schedule.next() == steps[3]
    assert schedule.next() is None
    assert schedule.failed(steps[0]) == (steps[1], steps[2])
    assert schedule.is_over


def test_workers_that_die_are_replaced_and_failures_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acting_steps.py").write_text(ACT, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    acting = importlib.import_module("acting_steps")
    diary = Diary()
    steps = [
        acting.Simple("die once"),
        acting.Simple("after", ("die once",)),
        acting.Simple("raise"),
        acting.Simple("lost", ("raise",)),
        acting.Simple("always die"),
        acting.Simple("fine"),
    ]
    LocalEngine(n_workers=2).run(steps, acting.act, tmp_path, diary)
    ends = {name: what for what, name in diary.entries if not what.startswith("begun")}
    assert ends["die once"] == ends["after"] == ends["fine"] == "done"
    assert ends["raise"] == "failed: no texts"
    assert ends["lost"] == "skipped"
    assert "signal 9" in ends["always die"]
    assert ("begun 2", "die once") in diary.entries
    assert [name for what, name in diary.entries if what == "done"].count("after") == 1


@pytest.fixture
def lab(smoke_lab: Path) -> Path:
    status = lab_status(smoke_lab)
    assert not status.failed
    assert status.count("done") == len(status.steps)
    return smoke_lab


def fingerprint(out: Path) -> dict[str, object]:
    """Everything of the stores but what tells the time or the machine."""
    found: dict[str, object] = {}
    for path in sorted((out / "stores").glob("*/**/*")):
        name = path.relative_to(out).as_posix()
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text("utf-8"))
            found[name] = {k: v for k, v in manifest.items() if k not in ("created", "environment", "seconds")}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def test_the_smoke_recipe_leaves_four_labelled_stores(lab: Path) -> None:
    stores = [FeatureStore(path.parent) for path in sorted((lab / "stores").glob("*/manifest.json"))]
    assert len(stores) == 4
    for store in stores:
        labels = store.texts["label"].to_numpy()
        assert sorted(np.unique(labels).tolist()) == [0, 1]
        assert len(store) == 120
        assert store.manifest["overlap"]["shared_documents"] == 0
        assert 0 <= store.manifest["blind_auc"] <= 1
        assert store.manifest["figures"]["member_loss"] < store.manifest["figures"]["reference_member_loss"]
    assert not list((lab / "targets").glob("*")), "fine-tuned models go once their stores are there"
    assert lab_status(lab).count("done") == 10


def test_running_again_does_nothing_and_a_damaged_store_is_made_again(lab: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(lab, copy)
    # Paths are part of no key, but a lab moved is a lab whose products are found under its new folder.
    before = fingerprint(copy)
    times = {p: p.stat().st_mtime_ns for p in copy.rglob("*.json") if p.name == "manifest.json"}
    run_lab(SMOKE, copy)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    shard = max((copy / "stores" / "tiny.early.quick").iterdir(), key=lambda p: p.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    status = run_lab(SMOKE, copy, engine=OneProcess())
    assert not status.failed
    assert fingerprint(copy) == before


@pytest.mark.slow  # every day test_lab_faults kills labs that have no workers
def test_a_killed_lab_goes_on_where_it_was_and_comes_to_the_same(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    text = SMOKE.read_text("utf-8").replace('corpora = ["early", "late"]', 'corpora = ["early"]')
    recipe = written(tmp_path, text.replace('bases = ["demo", "tiny"]', 'bases = ["demo"]'))
    command = [sys.executable, "-m", "ltmia", "lab", "run", str(recipe), "-o", str(out), "--workers", "1", "--quiet"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(8.0)  # the clock decides when the lab is killed, not when the test passes
    process.kill()
    process.wait()
    whole = tmp_path / "whole"  # its workers grow as many trees, unlike the lab of all tests
    for folder in (out, whole):
        done = run_ltmia("lab", "run", str(recipe), "-o", str(folder), "--workers", "1", "--quiet")
        assert done.returncode == 0, done.stderr
    assert fingerprint(out) == fingerprint(whole) != {}


def test_one_folder_has_one_lab(lab: Path) -> None:
    with hold_folder(lab), pytest.raises(ConfigError, match="another run is at work"):
        run_lab(SMOKE, lab)


def test_one_failed_combination_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SMOKE.read_text("utf-8").replace('bases = ["demo", "tiny"]', 'bases = ["tiny"]')
    text = text.replace('corpora = ["early", "late"]', 'corpora = ["early"]').replace("100_000", "4_000")
    text = text.replace("= 60\n", "= 30\n")
    # A learning rate that no model survives: the loss becomes infinite.
    text = text.replace('regimes = ["quick"]', 'regimes = ["quick", "broken"]')
    broken = (
        "[regimes.broken]\nlearning_rate = 1e30\nepochs = 2\nn_members = 30\nn_nonmembers = 30\nmax_length = 64\n\n"
    )
    recipe = written(tmp_path, text.replace("[[grid]]", broken + "[[grid]]"))
    monkeypatch.setattr("ltmia.lab.run.LocalEngine", lambda **_: OneProcess())
    done = CliRunner().invoke(app, ["lab", "run", str(recipe), "-o", str(tmp_path / "lab"), "--quiet"])
    status = lab_status(tmp_path / "lab")
    stores = {path.parent.name for path in (tmp_path / "lab" / "stores").glob("*/manifest.json")}
    assert stores == {"tiny.early.quick"}
    assert status.failed
    assert isinstance(done.exception, LtmiaError)
    assert "broken" in str(done.exception)


def test_too_few_texts_are_refused_before_any_work(tmp_path: Path) -> None:
    text = SMOKE.read_text("utf-8").replace("n_members = 60", "n_members = 60000")
    with pytest.raises(DataError, match="lower n_members"):
        run_lab(written(tmp_path, text), tmp_path / "lab")
    assert not (tmp_path / "lab" / "stores").exists()


def test_what_a_lab_costs_is_told_without_writing(tmp_path: Path) -> None:
    forecast = plan_lab(SMOKE, tmp_path / "lab", workers=2)
    assert len(forecast.to_do) == 10
    assert 1 < forecast.seconds < 600
    assert forecast.disk_bytes > 10**6
    assert not (tmp_path / "lab").exists()


def test_a_folder_without_a_lab_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no lab has run here"):
        lab_status(tmp_path)


def test_the_recipe_of_the_papers_scale_is_planned_without_a_network(tmp_path: Path) -> None:
    path = RECIPES / "paper.toml"
    recipe = read_recipe(path)
    combinations = recipe.all_combinations()
    tested = [c for c in combinations if recipe.corpora[c.corpus].role == "test"]
    training = [c for c in combinations if c not in tested]
    assert len({c.base for c in training}) == 10
    assert len({c.corpus for c in training}) == 3
    assert not {c.base for c in training} & {c.base for c in tested}
    for regime in recipe.regimes.values():
        assert (regime.n_members, regime.n_nonmembers, regime.n_validation, regime.epochs) == (10_000, 10_000, 500, 3)
        assert (regime.learning_rate, regime.schedule, regime.batch_size, regime.keep) == (5e-5, "constant", 16, "best")
        assert (regime.max_length, regime.lora_rank, regime.lora_alpha) == (128, 16, 32)
    forecast = plan_lab(path, tmp_path / "lab")
    assert len(forecast.to_do) == 2 * len(combinations)
    assert all(step.seconds is None for step in forecast.to_do), "no base is here, so no time is known"
    assert forecast.disk_bytes > 20_000 * len(combinations)
    assert not (tmp_path / "lab").exists()


def test_a_corpus_without_documents_is_parted_by_text(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Lot {i} holds {i * 37 % 101} lamps."}) for i in range(400)]
    (tmp_path / "plain.jsonl").write_text("\n".join(lines), "utf-8")
    text = '[corpora.plain]\npath = "plain.jsonl"\ngroup_column = ""\n\n[bases.demo]\npath = "embedded"\n\n'
    text += "[regimes.r]\nlearning_rate = 1e-3\nepochs = 1\nn_members = 20\nn_nonmembers = 20\n\n"
    text += '[[combinations]]\nbase = "demo"\ncorpus = "plain"\nregime = "r"\n'
    plan = make_plan(read_recipe(written(tmp_path, text)), tmp_path, corpora=tmp_path, bases=tmp_path)
    work = plan.steps[0].work
    pool = corpus_texts(work.corpus, pool_buckets(work.corpus))
    assert 60 < len(pool) < 180, "three of ten buckets"
    drawn = draw_texts(work, pool)
    assert len(drawn.members) == len(drawn.nonmembers) == 20
