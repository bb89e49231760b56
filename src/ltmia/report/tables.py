"""A page of tables under a verdict, in the look of the report: of a comparison, and of a lab.

Strings may come from anybody, so the template escapes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltmia.evaluation.shown import one_line
from ltmia.evaluation.summary import Status
from ltmia.folders import named_errors, write_whole
from ltmia.ownership import refuse_stranger
from ltmia.report.page import template_environment
from ltmia.report.words import SIGNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a title."""

    title: str
    note: str = ""
    """A sentence that says what the rows are."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePage:
    """What a page of tables shows."""

    kind: str
    """Kind of page, written into it; a file with this mark may be replaced."""
    title: str
    subject: str
    status: Status
    word: str
    """The verdict."""
    points: Sequence[str]
    tables: Sequence[Table]


def write_tables(page: TablePage, file: Path) -> None:
    """Write the page as one file that loads nothing.

    Raises:
        ConfigError: If another program's file is there.
    """
    refuse_stranger(file, f'name="ltmia-page" content="{page.kind}"')
    with named_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda part: part.write_text(render_tables(page), "utf-8"))


def render_tables(page: TablePage) -> str:
    """Return the page as text; tables without rows are left out."""
    environment = template_environment()
    environment.filters["one_line"] = one_line
    shown = [table for table in page.tables if table.rows]
    return environment.get_template("tables.html.j2").render(page=page, tables=shown, signs=SIGNS)
