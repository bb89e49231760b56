"""What the machine does to a lab: full disks, unwritable folders, damaged files. Never a wrong store."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from disks import mounted, remount
from killed import die, killed
from ltmia.errors import LtmiaError
from ltmia.lab.engine import Perform, Result, Watcher
from ltmia.lab.run import run_lab
from ltmia.lab.state import LabStatus
from ltmia.lab.steps import Step
from ltmia.ownership import MARKER_FILE
from one_process import OneProcess

RECIPE = """
keep_models = true

[corpora.late]
path = "embedded"
documents = "sotu/[12][90]*"

[bases.tiny]
model_type = "gpt2"
vocab_size = 300
hidden_size = 32
n_layers = 2
n_heads = 2
n_tokens = 4000

[regimes.quick]
learning_rate = 1e-3
epochs = 1
n_members = 30
n_nonmembers = 30
max_length = 64

[[combinations]]
base = "tiny"
corpus = "late"
regime = "quick"
"""


def run(out: Path, recipe: Path) -> LabStatus:
    return run_lab(recipe, out, engine=OneProcess())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    out = tmp_path_factory.mktemp("lab") / "whole"
    status = run(out, recipe)
    assert status.count("done") == len(status.steps) == 4
    return out


def products(out: Path) -> dict[str, object]:
    """Every file that a lab made, but for what tells the time or the machine."""
    found: dict[str, object] = {}
    for kind in ("bases", "targets", "stores"):
        for path in sorted(p for p in (out / kind).rglob("*") if p.is_file()):
            content: object = re.sub(rb"/\S+/bases/", b"bases/", path.read_bytes())  # a fine-tune names its base
            if path.name in ("manifest.json", "training.json", MARKER_FILE):
                values = json.loads(content)
                content = {k: v for k, v in values.items() if k not in ("created", "environment", "seconds", "sha256")}
            found[path.relative_to(out).as_posix()] = content
    return found


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, mounted with the options given."""
    with mounted(tmp_path / "disk", request.param) as place:
        yield place


@pytest.mark.parametrize("disk", ["size=120k", pytest.param("size=1m", marks=pytest.mark.slow)], indirect=True)
def test_a_full_disk_is_named_and_with_room_the_lab_goes_on(disk: Path, whole: Path, recipe: Path) -> None:
    try:
        status = run(disk / "lab", recipe)
    except LtmiaError as error:
        assert "No space left on device" in str(error)  # noqa: PT017  not even the failure could be written down
    else:
        assert "No space left on device" in (status.failed[0].error or "")
    assert not list(disk.rglob("manifest.json")), "a store that is not whole"
    remount(disk, "size=100m")
    assert not run(disk / "lab", recipe).failed
    assert products(disk / "lab") == products(whole)


@pytest.mark.parametrize("disk", ["ro"], indirect=True)
def test_a_folder_that_cannot_be_written_is_named(disk: Path, recipe: Path) -> None:
    with pytest.raises(LtmiaError, match=f"{disk / 'lab'}: cannot be written"):
        run(disk / "lab", recipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path, recipe: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(LtmiaError, match="cannot be written"):
        run(tmp_path / "lab", recipe)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Killed(OneProcess):
    """Is killed when its first step has made its product and nobody has noted it."""

    def run(self, steps: Sequence[Step], perform: Perform, folder: Path, watcher: Watcher) -> None:
        def perform_and_die(step: Step, folder: Path) -> Result:
            perform(step, folder)
            die()

        super().run(steps, perform_and_die, folder, watcher)


def test_a_lab_that_is_killed_at_each_step_comes_to_the_same(whole: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "lab"
    for _ in range(3):
        killed(lambda: run_lab(recipe, out, engine=Killed()))
    status = run(out, recipe)
    assert status.count("done") == len(status.steps) == 4
    assert products(out) == products(whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("stores/*/tokens.f16", flip),
        ("stores/*/texts.parquet", cut),
        ("targets/*/model/model.safetensors", cut),
        ("bases/*/model.safetensors", flip),
    ],
)
def test_what_was_damaged_is_made_again(name: str, damage: object, whole: Path, recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    damage(next(copy.glob(name)))
    assert products(copy) != products(whole)
    assert not run(copy, recipe).failed
    assert products(copy) == products(whole)
