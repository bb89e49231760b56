"""The action, the pre-commit hook and the image: what they run is run here, as far as it can be without their hosts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands import run_ltmia

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))


@pytest.fixture(scope="module")
def audit(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(materials / "audit", tmp_path_factory.mktemp("work") / "an audit")


def run_action(work: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the action's steps in bash, as GitHub does."""
    given = {name: told.get("default", "") for name, told in ACTION["inputs"].items()} | inputs
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    github = {"GITHUB_STEP_SUMMARY": str(work / "summary.md"), "GITHUB_ACTION_PATH": str(ROOT), "PATH": path}
    for step in ACTION["runs"]["steps"]:
        told = {
            name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], value)
            for name, value in step.get("env", {}).items()
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            command, cwd=work, env=os.environ | github | told, capture_output=True, text=True, check=False
        )
        if done.returncode:
            break
    return done


def test_the_action_fails_where_the_gate_does_and_writes_its_summary(audit: Path) -> None:
    work = audit.parent
    (work / "privacy.toml").write_text('[max]\n"extractable@1" = 0\n', "utf-8")
    passed = run_action(work, audit="an audit", policy="privacy.toml", junit="gate.xml")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "extractable" in (work / "summary.md").read_text("utf-8")
    assert (work / "gate.xml").is_file()
    failed = run_action(work, audit="an audit", max="auc:0.5 identifiable:0", inconclusive="fail")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "AUC" in failed.stdout
    assert "identif" in failed.stdout


def test_the_hook_runs_the_gate(audit: Path) -> None:
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    program, *words = shlex.split(hook["entry"])
    assert (program, hook["language"], hook["pass_filenames"]) == ("ltmia", "python", False)
    for limit, code in (("extractable@1:0", 0), ("auc:0.5", 1)):
        done = run_ltmia(*words, str(audit), "--max", limit, "--inconclusive", "fail")
        assert done.returncode == code, done.stdout + done.stderr


def test_what_the_image_copies_is_enough_to_build_the_package(tmp_path: Path) -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert set(copied) == let_through, "what the Dockerfile copies, and no more, is sent to the builder"
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    torch = re.search(r"^ARG TORCH=(.*)$", "\n".join(lines), re.M)[1]
    assert torch in (ROOT / "Makefile").read_text("utf-8"), "the same torch as here"
