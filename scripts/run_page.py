"""Run what a page of the documentation shows, in the current folder: python scripts/run_page.py PAGE.

The fence of a block says what kind it is; tests/docs/test_docs_blocks.py lists the kinds. Here `python` and `sh
{.run}` are run from top to bottom, in one process, and `text {.output}` is compared with what the block before it
printed ("..." stands for anything). The folder must hold what examples/materials.py writes, and a model fine-tuned on
it.
"""

import doctest
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from typer.testing import CliRunner

from ltmia.cli.app import app


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    mark: str
    """The word in braces after the language, without the dot."""
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is run, not only read."""
        return self.language == "python" or self.mark == "run"

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page.

    Raises:
        ValueError: If a fence says something else than a language and at most one mark.
    """
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type in ("fence", "code_block"):
            line = (token.map or [0])[0] + 1
            found = re.fullmatch(r"(\w*)(?: \{\.(\w+)\})?", token.info.strip())
            if not found:
                raise ValueError(
                    f"{page}:{line}: fence {token.info!r}; expected a language, and one mark such as {{.run}}"
                )
            yield Block(page=page, line=line, language=found[1], mark=found[2] or "", text=token.content)


def commands(text: str) -> list[list[str]]:
    """Cut shell text into commands: continued lines joined, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_page(page: Path) -> None:
    """Run a page's blocks; later Python blocks see the names of earlier ones.

    Raises:
        ValueError: If a command fails, or prints something else than the page says.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        elif block.mark == "run":
            printed = "".join(_run(words, block) for words in commands(block.text))
        elif block.mark == "output":
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            if not doctest.OutputChecker().check_output(block.text, printed, flags):
                raise ValueError(f"{block}: the commands before it print\n{printed}")


def _run(words: list[str], block: Block) -> str:
    done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    # A gate that does not pass is a result, not a failure to run.
    if done.exit_code not in ((0, 1, 3) if words[1] == "gate" else (0,)):
        raise ValueError(f"{block}: {shlex.join(words)}: exit code {done.exit_code}\n{done.output}")
    return done.stdout


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
