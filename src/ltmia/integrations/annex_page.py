"""A page of lists and tables, as Markdown and as HTML.

Its strings may come from anybody, so they are escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from ltmia.evaluation.shown import markdown, one_line
from ltmia.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page: lists first, then tables."""

    title: str
    lead: str
    lists: Sequence[tuple[str, Sequence[str]]]
    tables: Sequence[Table]
    """Their notes are not shown."""


_HTML = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ page.title }}</title>
<style>
@page { size: A4; margin: 18mm 15mm; @bottom-right { content: counter(page) " / " counter(pages); font-size: 8pt; } }
body { font: 10pt/1.4 sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 15pt; } h2 { font-size: 12pt; margin: 1em 0 .3em; }
ul { margin: 0; padding-left: 1.2em; } .tables { break-before: page; }
table { border-collapse: collapse; width: 100%; font-size: 8.5pt; }
th, td { border: 1px solid #999; padding: .25em .4em; text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; }
tr { break-inside: avoid; } h2 { break-after: avoid; }
</style>
</head>
<body>
<h1>{{ page.title }}</h1>
<p>{{ page.lead }}</p>
{% for title, lines in page.lists %}<h2>{{ title }}</h2>
<ul>
{% for line in lines %}<li>{{ line | one_line }}</li>
{% endfor %}</ul>
{% endfor %}<div class="tables">
{% for table in page.tables if table.rows %}<h2>{{ table.title }}</h2>
<table>
<thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell | one_line }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% endfor %}</div>
</body>
</html>
"""


def as_html(page: Page) -> str:
    """Render a page that loads nothing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["one_line"] = one_line
    return environment.from_string(_HTML).render(page=page)


def as_markdown(page: Page) -> str:
    """Write the same as Markdown."""
    lines = [f"# {page.title}", "", page.lead, ""]
    for title, items in page.lists:
        lines += [f"## {title}", "", *(f"- {markdown(item)}" for item in items), ""]
    for table in page.tables:
        if table.rows:
            lines += [f"## {table.title}", "", _row(table.head), "|" + "---|" * len(table.head)]
            lines += [*(_row([markdown(cell) for cell in row]) for row in table.rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
