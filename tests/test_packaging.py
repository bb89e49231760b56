"""What is shipped and what it asks for: the wheel's files, declared and bounded dependencies, complete constraints."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ltmia

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "ltmia"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USED = (None, "endpoint", "ray", "dp", "hub", "mlflow", "wandb", "trackio", "tensorboard", "pdf", "presidio")
"""What the package itself imports; the others are for those who work on it."""
DECLARED = {
    None: [Requirement(line) for line in PROJECT["dependencies"]],
    **{extra: [Requirement(line) for line in lines] for extra, lines in EXTRAS.items()},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("ltmia-*-py3-none-any.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not re.match(r"ltmia-[\d.]+\.dist-info/", name)}
    # What is beside the sources but not under version control: caches of Python and of the compiled kernel.
    there = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(SOURCE.parent).as_posix() for path in there}
    for needed in (
        "ltmia/py.typed",
        *(
            f"ltmia/classifier/weights/{name}/{file}"
            for name in ("full", "lite")
            for file in ("model.safetensors", "config.json", "README.md")
        ),
    ):
        assert needed in names
    assert any(name.startswith("ltmia/report/templates/") for name in names)
    assert any(name.startswith("ltmia/data/") and not name.endswith(".py") for name in names), "the demo's texts"
    assert sum(entry.file_size for entry in wheel.infolist() if "/weights/" in entry.filename) <= 6e6
    assert sum(entry.compress_size for entry in wheel.infolist()) < 12 * 2**20


def test_the_wheel_says_whose_it_is_and_what_it_starts(wheel: zipfile.ZipFile) -> None:
    about = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert about["LICENSE"] == (ROOT / "LICENSE").read_text("utf-8")
    assert "License-Expression: Apache-2.0" in about["METADATA"]
    assert "ltmia = ltmia.__main__:main" in about["entry_points.txt"]


@pytest.mark.parametrize("requirement", [r for lines in DECLARED.values() for r in lines], ids=str)
def test_every_dependency_has_a_floor_and_a_ceiling(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators == {">=", "<"} or operators == {"=="} or requirement.name == PROJECT["name"]


BROUGHT = {"triton": "torch"}
"""Modules that others bring: torch for accelerators needs Triton."""


def imports(path: Path) -> Iterator[str]:
    """Name the top-level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_import_is_declared() -> None:
    declared = {canonicalize_name(r.name) for extra in USED for r in DECLARED[extra]}
    homes = packages_distributions()
    third_party = {name for path in SOURCE.rglob("*.py") for name in imports(path)} - set(sys.stdlib_module_names)
    for module in third_party - {"ltmia"}:
        # Of an extra that is not installed nothing but the name is known.
        names = {canonicalize_name(name) for name in homes.get(module, [BROUGHT.get(module, module)])}
        assert names & declared, f"{module}: add {' or '.join(names)} to pyproject.toml"


def asked_for(requirements: list[Requirement], seen: set[tuple[str, str]]) -> Iterator[Requirement]:
    """Walk through the requirements of what is installed, and theirs."""
    for requirement in requirements:
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key in seen:
                continue
            seen.add(key)
            try:
                lines = distribution(requirement.name).requires or []
            except PackageNotFoundError:  # an extra that is not installed here
                continue
            yield requirement
            needs = [
                need for need in map(Requirement, lines) if not need.marker or need.marker.evaluate({"extra": extra})
            ]
            yield from asked_for(needs, seen)


def test_constraints_pin_all_that_is_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonicalize_name(r.name): r.specifier for r in map(Requirement, (x for x in lines if x[0] != "#"))}
    torch = re.search(r"torch==([\d.]+)", (ROOT / "Makefile").read_text("utf-8"))[1]
    assert distribution("torch").version.partition("+")[0] == torch
    found = list(asked_for([r for lines in DECLARED.values() for r in lines], set()))
    assert len(found) > 60
    unpinned = {canonicalize_name(r.name) for r in found} - set(pinned) - {"ltmia", "torch"}
    assert not unpinned, f"pin in constraints.txt: {sorted(unpinned)}"
    for requirement in found:
        for pin in pinned.get(canonicalize_name(requirement.name), ()):
            assert requirement.specifier.contains(pin.version, prereleases=True), f"{requirement} but {pin}"


def test_make_and_ci_install_by_the_constraints() -> None:
    for name in ("Makefile", ".ci/run"):
        installs = [
            line for line in (ROOT / name).read_text("utf-8").splitlines() if "pip" in line and "install" in line
        ]
        assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs), installs


def test_no_folder_of_the_source_hides_a_public_name() -> None:
    folders = {path.parent.name for path in (ROOT / "src" / "ltmia").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "src" / "ltmia").glob("*.py")}
    assert not (folders | modules) & set(ltmia.__all__), "importing such a module would replace the function"
