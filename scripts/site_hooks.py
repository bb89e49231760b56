"""Adds to the documentation site the files outside docs/ that its pages link to.

Pages link to files of the repository by `../PATH`, which works where the repository is browsed. On the site such a file
is copied to `PATH`, so that the same link works there too.
"""

import re
from importlib.metadata import version
from pathlib import Path
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say at the foot of each page which version it describes."""
    config.copyright = f"ltmia {version('ltmia')}, Apache-2.0"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to; the strict build refuses a link to a missing file."""
    linked = {path for page in Path(config.docs_dir).glob("*.md") for path in OUTSIDE.findall(page.read_text("utf-8"))}
    for path in sorted(linked):
        source = ROOT / normpath(path)
        if source.is_file():
            files.append(File.generated(config, _served(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  mkdocs names them
    """Point links to the copies."""
    return OUTSIDE.sub(lambda match: "](" + _served(match[1]), markdown)


def _served(path: str) -> str:
    """Return the path of a repository file on the site; Markdown becomes text, because it is not a page of the site."""
    return path + ".txt" if path.endswith(".md") else path
