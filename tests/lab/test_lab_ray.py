"""The Ray engine: the same answers as the local one, also when workers die. Needs the extra `ray`."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ltmia.errors import ConfigError
from ltmia.lab.plan import make_plan
from ltmia.lab.reading import read_recipe
from ltmia.lab.run import run_lab
from ltmia.lab.steps import Step, TokenizerWork

pytest.importorskip("ray", reason='Ray is not installed: pip install "ltmia[ray]" to run these tests')

from ltmia.lab.ray_engine import RayEngine

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"

ACT = """
import os, signal
from ltmia.errors import DataError

def act(step, folder):
    if step.name.startswith("raise"):
        raise DataError("no texts")
    if step.name.startswith("exit"):
        raise SystemExit(3)
    mark = folder / step.name
    if step.name.startswith("always die") or (step.name.startswith("die") and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"threads": os.environ["OMP_NUM_THREADS"]}
"""
"""What the steps of these tests do: the step's name says. In a file, where Ray's workers find it."""


@dataclass
class Diary:
    """Writes down what an engine tells."""

    begun_names: list[str] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)

    def begun(self, step: Step, _attempt: int) -> None:
        self.begun_names.append(step.name)

    def done(self, step: Step, _seconds: float, result: dict[str, str]) -> None:
        assert step.name not in self.ends
        self.ends[step.name] = f"done with {result['threads']} thread"

    def failed(self, step: Step, _seconds: float, error: str, _details: str | None) -> None:
        assert step.name not in self.ends
        self.ends[step.name] = f"failed: {error}"

    def skipped(self, step: Step) -> None:
        assert step.name not in self.ends
        self.ends[step.name] = "skipped"


def simple_step(name: str, *needs: str) -> Step:
    work = TokenizerWork(corpora=(), vocab_size=1)
    return Step(kind="tokenizer", name=name, key=name, needs=needs, product=Path(name), work=work)


def test_dead_workers_are_tried_again_and_failures_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray_steps.py").write_text(ACT, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    act = importlib.import_module("ray_steps").act
    diary = Diary()
    steps = [
        simple_step("die once"),
        simple_step("after", "die once"),
        simple_step("raise"),
        simple_step("lost", "raise"),
        simple_step("lost too", "lost"),
        simple_step("always die"),
        simple_step("exit"),
        simple_step("fine"),
    ]
    RayEngine(n_workers=2).run(steps, act, tmp_path, diary)
    assert diary.ends["die once"] == diary.ends["after"] == diary.ends["fine"] == "done with 1 thread"
    assert diary.ends["raise"] == "failed: no texts"
    assert diary.ends["lost"] == diary.ends["lost too"] == "skipped"
    assert "worker died 2 times" in diary.ends["always die"]
    assert diary.ends["exit"].startswith("failed")
    assert diary.begun_names.count("die once") == 2
    assert diary.begun_names.count("fine") == 1
    assert "lost" not in diary.begun_names


def test_a_gpu_that_the_cluster_has_not_is_refused(tmp_path: Path) -> None:
    text = 'device = "cuda"\n' + SMOKE.read_text("utf-8")
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    plan = make_plan(read_recipe(tmp_path / "recipe.toml"), tmp_path, corpora=tmp_path, bases=tmp_path)
    with pytest.raises(ConfigError, match="has no GPU"):
        RayEngine(n_workers=1).run(plan.steps, lambda _step, _folder: {}, tmp_path, Diary())


def test_stores_made_by_ray_equal_those_made_here(tmp_path: Path) -> None:
    for name, engine in (("local", None), ("ray", RayEngine(n_workers=2))):
        status = run_lab(SMOKE, tmp_path / name, workers=2, engine=engine)
        assert status.count("done") == len(status.steps), status.failed
    files = [path for path in sorted((tmp_path / "local" / "stores").rglob("*")) if path.is_file()]
    assert len({path.parent for path in files}) == 4
    for path in files:
        other = tmp_path / "ray" / path.relative_to(tmp_path / "local")
        if path.name == "manifest.json":
            ours, theirs = (json.loads(p.read_text("utf-8")) for p in (path, other))
            told = {"environment": {}, "created": ""}  # of machine and time
            assert ours | told == theirs | told
        else:
            assert path.read_bytes() == other.read_bytes()
