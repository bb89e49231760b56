"""What the documentation site takes from outside docs/: files that pages link to, and the commands' own help.

Pages link to files of the repository by `../PATH`, which works where the repository is browsed. On the site such a file
is copied to `PATH`, so that the same link works there too.
"""

import re
from importlib.metadata import version
from pathlib import Path
from posixpath import normpath

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from ltmia.cli.app import app

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
COMMANDS = "commands.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say at the foot of each page which version it describes."""
    config.copyright = f"ltmia {version('ltmia')}, Apache-2.0"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to; a link to none is left for the strict build to refuse."""
    linked = {path for page in Path(config.docs_dir).glob("*.md") for path in OUTSIDE.findall(page.read_text("utf-8"))}
    for path in sorted(linked):
        source = ROOT / normpath(path)
        if source.is_file():
            files.append(File.generated(config, _served(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  mkdocs names them
    """Point links to the copies, and append the commands' help to the page of commands."""
    if page.file.src_uri == COMMANDS:
        markdown += "\n\n" + command_reference()
    return OUTSIDE.sub(lambda match: "](" + _served(match[1]), markdown)


def command_reference() -> str:
    """Return every command with its arguments and options, from the program itself."""
    group = typer.main.get_command(app)
    return get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="ltmia"), name="ltmia")


def _served(path: str) -> str:
    """Return where a file of the repository stands on the site: Markdown as text, for it is no page of the site."""
    return path + ".txt" if path.endswith(".md") else path
