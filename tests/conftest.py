"""Shared settings and small real models: every number of the suite is computed, none is mocked."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread for each process of the tests and for what it starts: as many run side by side as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Triton's kernels run in its interpreter, on the CPU; it reads this when it is imported. `make gpu` compiles them.
os.environ.setdefault("TRITON_INTERPRET", "1")

import importlib
import json
import runpy
from pathlib import Path

import hypothesis
import pytest
import torch

from commands import run_ltmia, run_script
from sharing import made_once

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("ci")
torch.set_num_threads(1)

# Where the package is the first to import them, jaxtyping's import hook compiles them anew: ten seconds.
for name in ("datasets", "peft", "pyarrow.parquet", "scipy.stats", "sklearn.ensemble", "transformers.trainer"):
    importlib.import_module(name)

LONGEST = (
    "test_lab", "test_docs_blocks", "test_small_runs", "test_end_to_end", "test_observers", "test_report_browser",
    "test_given_away", "test_finetuning", "test_report", "test_examples", "test_validity",
)  # fmt: skip
"""Files of about a minute: they begin first, so that none is left to one process while the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels before there are workers: in a fresh checkout each process would do so, for 20 s."""
    if session.config.getoption("numprocesses", None):
        from ltmia.features.statistics import token_statistics
        from ltmia.kernels.bfloat16_product import has_bfloat16_product, multiply, packed

        token_statistics(torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), k=1)
        if has_bfloat16_product():
            multiply(torch.zeros(1, 2).bfloat16(), packed(torch.zeros(1, 2).bfloat16()), torch.empty(1, 1))


@pytest.fixture(autouse=True, scope="session")
def _quick() -> None:
    """Tests of the control itself set the number of trees back, those of reports the drawing."""
    from quick import be_quick

    be_quick()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of this run of the suite that all its processes see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def materials(shared_folder: Path) -> Path:
    """The folder that docs and examples speak of: texts, my-base, my-model fine-tuned on them, and a finished audit.

    Made once; nobody may change it.
    """
    return made_once(shared_folder / "materials", _make_materials)


@pytest.fixture(scope="session")
def smoke_lab(shared_folder: Path) -> Path:
    """The lab of recipes/smoke.toml, made once and without workers; nobody may change it."""

    def make(folder: Path) -> None:
        done = run_script(ROOT / "tests" / "one_process.py", str(ROOT / "recipes" / "smoke.toml"), str(folder))
        assert done.returncode == 0, done.stderr

    return made_once(shared_folder / "smoke-lab", make)


FIRST_WORDS = 30
"""Words of each text of the materials: enough to tell members from non-members, and half the work of whole texts."""


def _make_materials(folder: Path) -> None:
    runpy.run_path(str(ROOT / "examples" / "materials.py"))["write_materials"](folder, n_members=60, n_nonmembers=120)
    for path in folder.glob("*.jsonl"):
        rows = map(json.loads, path.read_text("utf-8").splitlines())
        short = [row | {"text": " ".join(row["text"].split()[:FIRST_WORDS])} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in short), "utf-8")
    finetune = ["finetune", "my-base", "--texts", "train.jsonl", "-o", "my-model", "--epochs", "2"]
    texts = ["--members", "train.jsonl", "--nonmembers", "held-out.jsonl", "--group-column", "document"]
    texts += ["--attacks", "ltmia,loss,difference,wbc"]
    for command in (
        [*finetune, "--learning-rate", "1e-3"],
        ["audit", "my-model", "--base", "my-base", *texts, "-o", "audit"],
    ):
        done = run_ltmia(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
