"""Everything that a page, the Makefile or a folder of scripts offers runs here, in a size of seconds.

`small_runs.py` is the list. Commands of `ltmia` run where torch has used threads before, and may not fork.
"""

import gzip
import importlib.util
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from _pytest.mark import ParameterSet

from commands import run_script
from ltmia.canaries.make import CanaryConfig, make_canaries
from ltmia.data.embedded import demo_texts
from ltmia.data.reading import read_texts
from ltmia.features.manifest import read_manifest, write_manifest
from ltmia.models.loading import LoadOptions, load_alone
from small_runs import COMMANDS, ROOT, SCRIPTS, SLOW_SCRIPTS, SmallRun

AFTER_THREADS = ROOT / "tests" / "after_threads.py"
PLAIN = {"NO_COLOR": "1", "COLUMNS": "160"}
TWO_THREADS = PLAIN | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
CORPORA = (
    "package_descriptions", "kernel_docs", "manpages", "commentary", "novels", "scripture", "email", "speeches",
    "dictionary", "python_code",
)  # fmt: skip
ELSEWHERE = {
    "ltmia": "below, by subcommand",
    "python": "below, by file",
    "make": "below: what stands in the Makefile",
    "mkdocs": "test_the_site_is_built",
    "pytest": "this suite",
    "ruff": "the Makefile's check, before this suite",
    "mypy": "the Makefile's check",
    "lint-imports": "the Makefile's check",
    "pip": "makes the environment",
    "pip-audit": "asks a server",
    "touch": "no command of ours",
    "source": "no command of ours",
    "export": "no command of ours",
    "git": "no command of ours",
    "cd": "no command of ours",
    "head": "no command of ours",
    ".": "no command of ours",
    "ray": "no command of ours",
}
"""Programs that pages and the Makefile call, and what runs them."""
_docs = runpy.run_path(str(ROOT / "tests" / "docs" / "test_docs_blocks.py"))
_page = runpy.run_path(str(ROOT / "scripts" / "run_page.py"))


@pytest.fixture(scope="module")
def places(materials: Path, smoke_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders that the arguments speak of; nobody may change them."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "page.md").write_text(
        "```sh {.run}\nltmia attacks\n```\n\n```python\nprint('two and two make', 2 + 2)\n```\n"
    )
    shutil.copytree(materials, folder / "materials")
    return {
        "root": str(ROOT),
        "materials": str(folder / "materials"),
        "corpora": str(write_corpora(folder / "corpora", embedded_rows())),
        "many": str(write_corpora(folder / "many", numbered_rows())),
        "lab": str(with_a_test_set(smoke_lab, folder / "lab")),
        "kept": str(keep_models(smoke_lab, folder / "kept")),
        "canaries": str(plant_canaries(materials, folder / "canaries")),
    }


def plant_canaries(materials: Path, folder: Path) -> Path:
    base, train = str(materials / "my-base"), materials / "train.jsonl"
    config = CanaryConfig(n_canaries=24, repeats=(1,), n_tokens=16)
    loaded = load_alone(base, options=LoadOptions(dtype="float32", device="cpu"))
    return make_canaries(loaded, train, folder, read_texts, config=config).training_file.parent


def embedded_rows() -> Iterator[dict[str, str]]:
    texts = demo_texts()
    for number, text, source in zip(texts.ids, texts.texts, texts.groups, strict=True):
        yield {"id": number, "text": text, "source": source}


def numbered_rows() -> Iterator[dict[str, str]]:
    for i in range(20_000):
        yield {"id": f"{i}", "text": f"Text {i}.", "source": f"{i}"}


def write_corpora(folder: Path, rows: Iterable[dict[str, str]]) -> Path:
    """Write the same texts under the name of each corpus, and a file where a base is looked for."""
    folder.mkdir()
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 1)
    for name in CORPORA:
        (folder / f"{name}.jsonl.gz").write_bytes(whole)
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    return folder


def with_a_test_set(lab: Path, folder: Path) -> Path:
    """Copy a lab's stores; those of one corpus become test stores, and one of them that of longer texts."""
    for store in (lab / "stores").iterdir():
        copy = shutil.copytree(store, folder / "stores" / store.name)
        manifest = read_manifest(copy)
        if ".late." in store.name:
            manifest["combination"]["role"] = "test"
        if store.name == "tiny.late.quick":
            manifest["combination"]["finetuning"]["max_length"] = 256
        write_manifest(copy, manifest)
    shutil.copytree(folder / "stores" / "demo.early.quick", folder / "real" / "stores" / "demo.early.quick")
    return folder


def keep_models(lab: Path, folder: Path) -> Path:
    """Let a copy of a lab make its fine-tuned models once more and keep them."""
    shutil.copytree(lab, folder)
    recipe = (ROOT / "recipes" / "smoke.toml").read_text("utf-8").replace('["demo", "tiny"]', '["demo"]')
    folder.with_suffix(".toml").write_text("keep_models = true\n" + recipe, "utf-8")
    done = run_after_threads("lab", "run", f"{folder}.toml", "-o", str(folder), "--workers", "1", here=folder)
    assert done.returncode == 0, done.stderr
    assert "Nothing is left to do" in done.stdout
    assert len(list((folder / "targets").iterdir())) == 2
    return folder


def run_after_threads(*arguments: str, here: Path) -> subprocess.CompletedProcess[str]:
    return run_script(AFTER_THREADS, *arguments, cwd=here, env=PLAIN)


def check(run: SmallRun, done: subprocess.CompletedProcess[str], here: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(run.finds, done.stdout), done.stdout
    run.check(here, done.stdout)


def prepare(run: SmallRun, places: dict[str, str], here: Path) -> None:
    if run.needs and importlib.util.find_spec(run.needs) is None:
        pytest.skip(f"{run.needs} is not installed; make torture installs it")
    for name, source in run.copies.items():
        shutil.copytree(source.format(**places), here / name)


def case(name: str, *values: object, run: SmallRun) -> ParameterSet:
    return pytest.param(*values, run, id=name, marks=[pytest.mark.slow] if run.is_slow else [])


SCRIPT_RUNS = [*SCRIPTS.items(), *SLOW_SCRIPTS.items()]


@pytest.mark.parametrize(("name", "run"), [case(name, name, run=run) for name, run in SCRIPT_RUNS if run])
def test_script_runs_small(name: str, run: SmallRun, places: dict[str, str], tmp_path: Path) -> None:
    prepare(run, places, tmp_path)
    arguments = shlex.split(run.arguments.format(**places))
    if run.is_fresh:
        command = [sys.executable, str(ROOT / name), *arguments]
        environment = os.environ | TWO_THREADS
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    else:
        done = run_script(ROOT / name, *arguments, cwd=tmp_path, env=PLAIN)
    check(run, done, tmp_path)


@pytest.mark.parametrize("run", [case(re.sub(r"[^ \w-]", "", run.arguments)[:60], run=run) for run in COMMANDS])
def test_command_runs_small(run: SmallRun, places: dict[str, str], tmp_path: Path) -> None:
    prepare(run, places, tmp_path)
    (tmp_path / "policy.toml").write_text("[max]\n'extractable@1' = 0\n", "utf-8")
    done = run_after_threads(*shlex.split(run.arguments.format(**places)), here=tmp_path)
    check(run, done, tmp_path)


FORKING = """
import multiprocessing, sys
sys.path.append(sys.argv[1])
from after_threads import refuse_forks
from child_work import compute
sys.addaudithook(refuse_forks)
multiprocessing.get_context("fork").Process(target=compute).start()
"""


def test_a_fork_after_threads_is_refused(tmp_path: Path) -> None:
    """Or the runs above would show nothing."""
    (tmp_path / "forking.py").write_text(FORKING)
    done = run_script(tmp_path / "forking.py", str(AFTER_THREADS.parent), cwd=tmp_path)
    assert done.returncode == 1
    assert "start the process by spawn or forkserver" in done.stderr


def test_the_site_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Start here" in (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "ltmia audit" in (tmp_path / "site" / "commands.html").read_text("utf-8")
    assert "ltmia 0." in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_every_script_is_in_the_list() -> None:
    files = [path for folder in ("scripts", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): "if __name__ ==" in path.read_text("utf-8") for path in files}
    listed = {name: run is not None for name, run in SCRIPTS.items() if not name.startswith("examples/")}
    assert listed == found, "each file, and whether it is a command"


def subcommand(words: list[str]) -> str:
    """Return `ltmia lab run` or `scripts/study.py` of a line that begins so; of `ltmia --help`, `ltmia`."""
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    if words[0] == "python":
        return words[1]
    length = 3 if words[1:2] in (["lab"], ["bench"], ["canaries"]) else 2
    return " ".join(word for word in words[:length] if not word.startswith("-"))


def page_lines() -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a line stands, its block's mark, and its words."""
    for page in [*_docs["LIVING"], ROOT / "benchmarks" / "README.md"]:
        for block in _page["blocks"](page):
            texts = [block.text] if block.language == "sh" else []
            if block.language == "yaml":
                texts = list(_docs["job_commands"](yaml.safe_load(block.text)))
            for text in texts:
                for words in _page["commands"](text):
                    yield str(block), block.mark, words


def makefile_lines() -> Iterator[tuple[str, str, list[str]]]:
    for line in (ROOT / "Makefile").read_text("utf-8").splitlines():
        if line.startswith("\t") and "$(PYTHON) -m venv" not in line:
            yield "Makefile", "", shlex.split(line.replace("$(BIN)/", ""))


def programs(words: list[str]) -> Iterator[list[str]]:
    """Cut a line at pipes and the like, and leave out folders of programs, and variables set."""
    for _, part in itertools.groupby(words, key=lambda word: word in ("&&", "||", "|", ";")):
        called = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), part))
        if called and called[0] not in ("&&", "||", "|", ";"):
            yield [Path(called[0]).name or called[0], *called[1:]]


LINES = [
    (place, mark, words)
    for lines in (page_lines, makefile_lines)
    for place, mark, line in lines()
    for words in programs(line)
]
RUN = {"ltmia"} | {name for name, run in SCRIPTS.items() if run}
RUN |= {subcommand(["ltmia", *run.arguments.split()]) for run in COMMANDS}
RUN |= {subcommand(words) for _, mark, words in LINES if mark == "run"}
"""What is run: small, or by the page itself."""


@pytest.mark.parametrize(("place", "words"), [(p, w) for p, _, w in LINES], ids=lambda value: str(value)[:70])
def test_what_is_shown_is_run(place: str, words: list[str]) -> None:
    assert words[0] in ELSEWHERE, f"{place}: nothing runs {words}; if nothing has to, ELSEWHERE says why"
    if words[0] in ("ltmia", "python"):
        assert subcommand(words) in RUN, f"{place}: {words} has no small run: add one to small_runs.py"
