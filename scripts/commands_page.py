"""Write the page of commands, with the help of each at its end: python scripts/commands_page.py docs/commands.md."""

import re
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from ltmia.cli.app import app

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
START = "<!-- Written by scripts/commands_page.py: change the help of the commands instead. -->\n"
SUMMARIES = re.compile(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n")  # cut short by typer; each command follows in full


def commands_page() -> str:
    """Return the page: what stands before `START`, and every command with its arguments and options."""
    introduction, _ = PAGE.read_text("utf-8").split(START)
    return introduction + START + "\n" + command_reference()


def command_reference() -> str:
    """Return every command below `ltmia` with its arguments and options, from the program itself."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="ltmia"), name="ltmia")
    shown = SUMMARIES.sub("", text[text.index("## ") :]).replace("```console\n", "```text {.output}\n")
    return re.sub("^#", "##", shown, flags=re.MULTILINE).strip() + "\n"


if __name__ == "__main__":
    page = commands_page()
    Path(sys.argv[1]).write_text(page, "utf-8")
    print(f"{page.count('## `')} commands")
