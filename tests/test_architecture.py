"""House rules that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "src" / "ltmia").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 330
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documentation = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert (node.end_lineno or 0) - node.lineno - documentation <= 70, node.name


def test_contributing_lists_every_folder_of_the_source() -> None:
    folders = {path.parent.name for path in (ROOT / "src" / "ltmia").glob("*/__init__.py")}
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(folders)


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        assert not re.search(r"\bimport pickle|pickle\.load|torch\.load\(|joblib|allow_pickle=True", text), path


def test_float64_is_made_on_the_cpu() -> None:
    """MPS knows no float64."""
    for path in FILES:
        assert not re.search(r"\.double\(\)(\.\w+\(\))*\.cpu\(\)", path.read_text("utf-8")), path


def test_processes_are_spawned() -> None:
    """A forked process waits for ever for the threads that its parent used."""
    for path in FILES:
        text = path.read_text("utf-8")
        forks = (
            r"os\.fork|forkpty|get_context\(\)|get_context\(.fork.\)|set_start_method|multiprocessing\.(Process|Pool)"
        )
        assert not re.search(forks + r"|ProcessPoolExecutor|joblib|num_proc|num_workers", text), path


def test_readme_names_the_commands_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")
