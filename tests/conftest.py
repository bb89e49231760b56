"""Shared settings and small real models: every number of the suite is computed, none is mocked."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import runpy
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("ci")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that docs and examples speak of: texts, my-base, my-model fine-tuned on them, and a finished audit."""
    folder = tmp_path_factory.mktemp("materials")
    runpy.run_path(str(ROOT / "examples" / "materials.py"))["write_materials"](folder, n_members=60, n_nonmembers=120)
    finetune = ["finetune", "my-base", "--texts", "train.jsonl", "-o", "my-model", "--epochs", "2"]
    texts = ["--members", "train.jsonl", "--nonmembers", "held-out.jsonl", "--group-column", "document"]
    texts += ["--attacks", "ltmia,loss,difference,wbc"]
    for command in (
        [*finetune, "--learning-rate", "1e-3"],
        ["audit", "my-model", "--base", "my-base", *texts, "-o", "audit"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ltmia", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder
