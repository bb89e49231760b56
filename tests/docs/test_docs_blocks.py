"""Every code block of README and docs/ does what it says: run where it is cheap, else read as the program reads it.

What a block is, its fence says:
    sh              each `ltmia` line is parsed by the program's own parser; `make`, `python` and others are looked up
    sh {.run}       its lines, all `ltmia`, are also run, in a folder with the materials of examples/materials.py
    text {.output}  what the block before prints; "..." stands for anything
    python          is run, in the same folder; names live on to the next block of the page
    toml, yaml      are read as policy, recipe, release context or CI job
    toml {.part}    is read as an addition to recipes/smoke.toml
    json            is read as a file of texts
    text {.spans}   is read as a file of spans, and so is json {.spans}
    text            is allowed for README's tree only, which has a test of its own
"""

import re
import runpy
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from markdown_it import MarkdownIt

from commands import run_script
from ltmia.cli.app import app
from ltmia.data.reading import read_texts
from ltmia.data.spans import read_spans
from ltmia.evaluation.limits import read_policy
from ltmia.integrations.annex import read_context
from ltmia.lab.reading import read_recipe
from ltmia.records import Texts

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = {"log.md", "protocol.md"}
"""Dated pages: a command in them was right on its day."""
LIVING = [page for page in PAGES if page.name not in HISTORY]
OTHER_PROGRAMS = {"head", "git", "cd", ".", "pip", "ray"}
SERVERS = {
    "--enable-lora",
    "--kv_overrides",
    "--logits_all",
    "--logprobs-mode",
    "--lora-modules",
    "--max-logprobs",
    "--max-model-len",
    "--no-enable-prefix-caching",
}
"""Options of servers of models, which docs/endpoints.md names."""
GROUP = typer.main.get_command(app)
RUNNER = ROOT / "scripts" / "run_page.py"
_runner = runpy.run_path(str(RUNNER))
blocks, commands = _runner["blocks"], _runner["commands"]


def parse(words: list[str]) -> None:
    """Read a command line as the program would, and stop short of doing it."""
    command, context, arguments = GROUP, None, words[1:]
    while isinstance(command, typer.core.TyperGroup):
        context = typer.Context(command, info_name=command.name, parent=context)
        _, found, arguments = command.resolve_command(context, arguments)
        command = found
    command.make_context(command.name, arguments, parent=context)


def check_command(words: list[str]) -> None:
    while re.match(r"[A-Z_]+=", words[0]):  # VARIABLE=value before a command
        words = words[1:]
    program = words[0]
    if program == "ltmia":
        parse(words)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in words[1:]), words
    elif program == "python":
        assert (ROOT / words[1]).is_file(), words
    else:
        assert program in OTHER_PROGRAMS, f"{words}: unknown program"


def job_commands(value: Any) -> Iterator[str]:
    """Find the shell lines of a CI job: what stands under `run` and `script`."""
    if isinstance(value, list):
        for item in value:
            yield from job_commands(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("run", "script", "before_script"):
                yield from [item] if isinstance(item, str) else item
            else:
                yield from job_commands(item)


def check_toml(text: str, path: Path) -> None:
    path.write_text(text, "utf-8")
    if "max" in tomllib.loads(text):
        read_policy(path)
    elif "declared" in tomllib.loads(text):
        read_context(path)
    else:
        read_recipe(path)


ALL_BLOCKS = [block for page in LIVING for block in blocks(page)]


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.mark == "spans"], ids=str)
def test_files_of_spans_are_read(block: Any, tmp_path: Path) -> None:
    (tmp_path / "spans").write_text(block.text, "utf-8")
    assert read_spans(tmp_path / "spans").find(Texts(texts=(), ids=())) == []


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.mark != "spans"], ids=str)
def test_block_is_what_its_fence_says(block: Any, tmp_path: Path) -> None:
    if block.language == "sh":
        assert block.mark in ("", "run")
        for words in commands(block.text):
            check_command(words)
            assert words[0] == "ltmia" or not block.mark
    elif block.language == "yaml":
        lines = [line for text in job_commands(yaml.safe_load(block.text)) for line in commands(text)]
        assert any(line[:2] == ["ltmia", "gate"] for line in lines)
        for line in lines:
            check_command(line)
    elif block.language == "toml":
        whole = (ROOT / "recipes" / "smoke.toml").read_text("utf-8") if block.mark == "part" else ""
        check_toml(whole + block.text, tmp_path / "block.toml")
    elif block.language == "json":
        (tmp_path / "texts.jsonl").write_text(block.text, "utf-8")
        assert read_texts(tmp_path / "texts.jsonl").texts
    elif block.language == "text":
        assert block.mark == "output" or "src/ltmia/" in block.text
    else:
        assert block.language == "python", f"{block}: say what it is: sh, python, toml, yaml, json, text"


@pytest.mark.parametrize(
    "words",
    [
        ["ltmia", "audt", "x"],
        ["ltmia", "gate", "x", "--most", "auc:1"],
        ["ltmia", "lab", "go"],
        ["ltmia", "audit", "x"],
    ],
)
def test_a_wrong_command_line_is_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such|Missing"):
        check_command(words)


@pytest.mark.parametrize("page", LIVING, ids=lambda page: page.name)
def test_commands_and_options_named_in_the_text_exist(page: Path) -> None:
    known = set(_options(GROUP)) | (SERVERS if page.name == "endpoints.md" else set())
    for span in _code_spans(page):
        if span.startswith(("ltmia ", "--")):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", span)) <= known, f"{page.name}: {span}"
        command = GROUP
        for word in span.split()[1:3] if span.startswith("ltmia ") else ():
            if isinstance(command, typer.core.TyperGroup) and word.isalpha() and word.islower():
                assert word in command.commands, f"{page.name}: {span}"
                command = command.commands[word]


def _options(command: Any) -> Iterator[str]:
    yield "--help"
    for child in getattr(command, "commands", {}).values():
        yield from _options(child)
    for parameter in command.params:
        yield from parameter.opts


def _code_spans(page: Path) -> Iterator[str]:
    for token in MarkdownIt().enable("table").parse(page.read_text("utf-8")):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs for b in blocks(p))], ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page: Path, materials: Path, tmp_path: Path) -> None:
    lines = [words for block in blocks(page) if block.mark == "run" for words in commands(block.text)]
    made = [words[words.index("-o") + 1] for words in lines if "-o" in words]  # by the page itself
    shutil.copytree(materials, tmp_path / "here", ignore=shutil.ignore_patterns(*made))
    # A process of its own: the checks of shapes that the suite switches on make it several times slower.
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "MPLBACKEND": "agg"}
    done = run_script(RUNNER, str(page), cwd=tmp_path / "here", env=environment)
    assert done.returncode == 0, done.stderr
