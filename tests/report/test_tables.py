"""Pages of tables: what they show is what the files hold, and hostile strings stay text."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ltmia.errors import ConfigError
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_audit
from ltmia.lab.page import lab_page
from ltmia.lab.state import LabStatus, StepRecord
from ltmia.report.comparison import comparison_page
from ltmia.report.tables import TablePage, render_tables, write_tables
from report_samples import HOSTILE, made_up_audit


class Cells(HTMLParser):
    """Tags of a page, and the text of each row of its tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_audit(tmp_path_factory.mktemp("made up"), 120, attacks=3)


def compared(folder: Path) -> tuple[pa.Table, TablePage]:
    """The page of an audit and of the same with the flags of members in the other order."""
    results, records = read_audit(folder)
    flags = np.array(records["flagged"].to_pylist())
    other = records.set_column(records.column_names.index("flagged"), "flagged", pa.array(flags[::-1]))
    comparison = compare_audits((results, records), (results, other), same_texts=True)
    return other, comparison_page((results, records), (results, other), comparison)


def test_groups_and_records_are_counted(folder: Path) -> None:
    other, page = compared(folder)
    rows = Cells(render_tables(page)).rows
    first, second = read_audit(folder)[1].to_pandas(), other.to_pandas()
    for group in first.query("label == 1").group.unique():
        expected = [sum(t.flagged[(t.label == 1) & (t.group == group)]) for t in (first, second)]
        [row] = [row for row in rows if row[0] == group]
        assert row[2:] == [str(n) for n in expected]
    changed = [i for i in first.index[first.label == 1] if first.flagged[i] != second.flagged[i]]
    assert {row[0] for row in rows if row[-1] in ("identified", "–")} == {first.id[i] for i in changed}


def test_the_verdict_is_that_of_the_comparison(folder: Path) -> None:
    page = render_tables(compared(folder)[1])
    assert re.search(r'<h1 id="headline" class="outcome inconclusive">.*Cannot tell', page)
    assert "+0.000 [+0.000, +0.000]" in html.unescape(page)


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    page = render_tables(compared(made_up_audit(tmp_path, 120, names=HOSTILE))[1])
    assert not {"script", "img", "svg"} & set(Cells(page).tags)
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri" in page, "nothing may run"


def lab_status(**failed: str) -> LabStatus:
    figures = {"difference": 0.75, "wbc": 0.875, "surp": float("nan"), "member_loss": 3.5, "bag_of_words": 0.5}
    steps = [StepRecord(key="a", kind="extract", name="demo.early", state="done", result=figures)]
    steps += [StepRecord(key=n, kind="finetune", name=n, state="failed", error=why) for n, why in failed.items()]
    return LabStatus(running=False, steps=tuple(steps))


def test_a_lab_has_a_row_for_each_combination_and_names_what_failed(tmp_path: Path) -> None:
    page = render_tables(lab_page(tmp_path, lab_status()))
    assert "All is done" in page
    [row] = [row for row in Cells(page).rows if row[0] == "demo.early"]
    assert row == ["demo.early", "– → 3.500", "0.750", "–", "0.875", "–", "0.500", "wbc, 0.875"]
    assert "Failures" not in page
    broken = render_tables(lab_page(tmp_path, lab_status(late="<b>loss</b> became infinite")))
    assert "Steps failed" in broken
    assert "b" not in Cells(broken).tags
    assert ["finetune", "late", "<b>loss</b> became infinite"] in Cells(broken).rows


def test_a_page_takes_the_place_of_its_own_kind_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lab.html"
    for _ in range(2):
        write_tables(lab_page(tmp_path, lab_status()), file)
    file.write_text("my notes")
    with pytest.raises(ConfigError, match="did not write this"):
        write_tables(lab_page(tmp_path, lab_status()), file)
    assert file.read_text() == "my notes"
