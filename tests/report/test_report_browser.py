"""The report in a real browser: it works, it asks the network for nothing, and hostile strings stay text.

Needs the Python package `playwright`, a Chromium of the system, and for the accessibility check axe-core's axe.min.js
at `.cache/axe-core/package/axe.min.js`; `.ci/run` gets both. Where they are missing the tests are skipped and say so.
"""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest

from chromium import CHROMIUM
from ltmia.evaluation.files import read_audit, read_records, read_tokens
from ltmia.evaluation.results import Results
from ltmia.models.pair import Pair
from ltmia.report.page import render_report, write_report
from report_samples import HOSTILE, N_MEMBERS, N_NONMEMBERS, made_up_audit, real_audit

AXE = Path(__file__).parents[2] / ".cache" / "axe-core" / "package" / "axe.min.js"
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
playwright = pytest.importorskip("playwright.sync_api", reason="no browser tests: `pip install playwright` is missing")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser tests: no chromium found (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


class Opened:
    """A page that counts what must not happen."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._requested)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.goto(file.as_uri())
        self.title = self.page.title()

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:")) or (
            request.url.startswith("file:") and "report.html" not in request.url
        ):
            self.faults.append(f"request: {request.url}")

    def column(self, name: str) -> list[str]:
        """Text of a column of the table of records."""
        headings = [text.strip(" ▲▼") for text in self.page.locator("#table thead th").all_inner_texts()]
        index = headings.index(name) + 1
        return self.page.locator(f"#table tbody tr > :nth-child({index})").all_inner_texts()

    def count(self) -> int:
        """Records that the filters leave."""
        return int(self.page.inner_text("#count").split(" ")[0])

    def close(self) -> None:
        """Close it and state that nothing went wrong."""
        assert self.page.title() == self.title, "a hostile string ran"
        self.context.close()
        assert self.faults == []


@pytest.fixture
def opened(browser: Any, audited: Path) -> Iterator[Opened]:
    opened = Opened(browser, audited / "report.html")
    yield opened
    opened.close()


def test_records_sort_by_any_column_and_say_so(opened: Opened, audited: Path) -> None:
    page, records = opened.page, read_records(audited)
    scores = np.sort(records["score_ltmia"].to_numpy())
    shown = [float(text) for text in opened.column("Score")]
    np.testing.assert_allclose(shown, scores[::-1][: len(shown)], rtol=1e-3)
    page.click("#table thead button:has-text('Score')")
    assert page.get_attribute("#table thead th:has-text('Score')", "aria-sort") == "ascending"
    np.testing.assert_allclose([float(text) for text in opened.column("Score")], scores[: len(shown)], rtol=1e-3)
    page.click("#table thead button:has-text('Record')")
    assert opened.column("Record") == sorted(records["id"].to_pylist())[:25]
    page.click("#table thead button:text-is('q')")
    known = [float(text) for text in opened.column("q") if text != "–"]
    assert known == sorted(known)


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition on the page; Playwright's own wait compiles code, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def test_filters_narrow_and_reset(opened: Opened, audited: Path) -> None:
    page, records = opened.page, read_records(audited).to_pandas()
    count, n = opened.count, N_MEMBERS + N_NONMEMBERS
    assert count() == n
    page.select_option("#f-show", "M")
    assert count() == N_MEMBERS
    page.click("button[type=reset]")
    wait_until(page, f"document.getElementById('count').textContent.startsWith('{n} ')")
    page.fill("#f-id", records["id"][3])
    assert opened.column("Record") == [records["id"][3]]
    page.fill("#f-id", "")
    page.click("summary:has-text('Score, q, length')")
    page.fill("#f-score-from", "0")
    assert count() == (records["score_ltmia"] >= 0).sum()
    page.fill("#f-q", "0.3")
    assert count() == ((records["score_ltmia"] >= 0) & (records["q_value"] <= 0.3)).sum()
    page.fill("#f-tokens-to", "twelve")
    assert page.get_attribute("#f-tokens-to", "aria-invalid") == "true"
    page.fill("#f-tokens-to", "100")
    expected = (records["score_ltmia"] >= 0) & (records["q_value"] <= 0.3) & (records["n_tokens"] <= 100)
    assert count() == expected.sum()
    page.click("button[type=reset]")
    page.fill("#f-group", records["group"][5])
    assert count() == (records["group"] == records["group"][5]).sum()


def test_a_group_shows_its_records_and_no_others(opened: Opened, audited: Path) -> None:
    page, groups = opened.page, read_records(audited).to_pandas()["group"]
    page.select_option("#f-show", "N")
    button = page.locator("button.group-records").first
    name = str(button.get_attribute("data-group"))
    button.click()
    assert page.input_value("#f-group") == f'"{name}"'
    assert opened.count() == (groups == name).sum() > 0
    assert page.evaluate("document.activeElement.id") == "f-group"
    page.fill("#f-group", f'"{name[:-1]}"')
    assert opened.count() == 0
    page.fill("#f-group", name[:-1])
    assert opened.count() == groups.str.contains(name[:-1], regex=False).sum()


def test_flagged_records_are_marked_and_can_be_chosen(opened: Opened, audited: Path) -> None:
    page, records = opened.page, read_records(audited).to_pandas()
    assert records["flagged"].sum() > N_MEMBERS / 2
    page.select_option("#size", "100")
    page.select_option("#f-show", "flagged")
    assert opened.count() == records["flagged"].sum()
    assert set(opened.column("Decision")) == {"⚑ flagged"}
    assert page.locator("#table tbody tr.flagged").count() == opened.count()
    page.select_option("#f-show", "unflagged")
    assert opened.count() == (~records["flagged"] & records["q_value"].notna()).sum()
    assert set(opened.column("Decision")) == {"not flagged"}
    assert page.locator("#table tbody tr.flagged").count() == 0


def test_paging_shows_every_record_once(opened: Opened, audited: Path) -> None:
    seen = opened.column("Record")
    while opened.page.is_enabled("#next"):
        opened.page.click("#next")
        seen += opened.column("Record")
    assert sorted(seen) == sorted(read_records(audited)["id"].to_pylist())
    opened.page.select_option("#size", "100")
    assert opened.page.inner_text("#page") == f"Page 1 of {math.ceil((N_MEMBERS + N_NONMEMBERS) / 100)}"


def test_the_csv_holds_what_is_chosen(opened: Opened, audited: Path, tmp_path: Path) -> None:
    opened.page.select_option("#f-show", "N")
    with opened.page.expect_download() as download:
        opened.page.click("#export")
    download.value.save_as(tmp_path / "records.csv")
    table = pyarrow.csv.read_csv(tmp_path / "records.csv").to_pandas()
    records = read_records(audited).to_pandas().query("label == 0")
    records = records.sort_values("score_ltmia", ascending=False, kind="stable")
    assert table["id"].tolist() == records["id"].tolist()
    np.testing.assert_allclose(table["score"], records["score_ltmia"], rtol=1e-5)


def test_a_record_opens_by_keyboard_and_shows_its_bands(opened: Opened, audited: Path) -> None:
    page = opened.page
    page.select_option("#f-show", "flagged")
    page.focus("#table tbody button >> nth=0")
    page.keyboard.press("Enter")
    assert page.is_visible("#record")
    assert "⚑ flagged" in page.inner_text("#r-facts")
    bands = page.locator("#r-bands div").all_inner_texts()
    top = read_records(audited).to_pandas().query("flagged").sort_values("score_ltmia", ascending=False).iloc[0]
    assert [" ".join(band.split()) for band in bands] == [
        f"highest 1 % {top['percent_highest_1']:.0f} % (usual: 1 %)",
        f"next 9 % {top['percent_next_9']:.0f} % (usual: 9 %)",
        f"next 40 % {top['percent_next_40']:.0f} % (usual: 40 %)",
        f"lowest 50 % {top['percent_lowest_50']:.0f} % (usual: 50 %)",
    ]
    assert page.inner_text("#r-third") == f"It stands out most in its {top['strongest_third']} third."
    assert not page.is_visible("#r-strip")
    assert "--reveal" in page.inner_text("#r-none")
    page.keyboard.press("Escape")
    assert not page.is_visible("#record")
    assert page.evaluate("document.activeElement.closest('#table') !== null"), "focus returns to the table"


def test_a_record_shows_its_tokens_where_they_were_revealed(browser: Any, revealed: Path) -> None:
    opened = Opened(browser, revealed / "report.html")
    page, tokens = opened.page, read_tokens(revealed)
    page.click("#table tbody button >> nth=0")
    cells = page.locator("#r-cells .cell").all_text_contents()
    assert cells == tokens["token"][0].as_py()
    before = page.get_attribute("#r-cells", "aria-label")
    page.check("input[value=attribution]")
    assert page.get_attribute("#r-cells", "aria-label") != before
    page.click("#record summary")
    shown = page.locator("#r-table tbody tr > :last-child").all_inner_texts()
    assert len(shown) == len(cells)
    made_of_it = tokens["attribution"][0].as_py()
    np.testing.assert_allclose([float(text.replace("−", "-")) for text in shown], made_of_it, atol=6e-4)
    opened.close()


def test_dark_is_dark_and_paper_is_white(browser: Any, audited: Path, tmp_path: Path) -> None:
    opened = Opened(browser, audited / "report.html", color_scheme="dark")
    luminance = (
        "n => getComputedStyle(document.body)[n].match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    )
    assert opened.page.evaluate(luminance, "backgroundColor") < 150
    assert opened.page.evaluate(luminance, "color") > 600
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate(luminance, "color") < 200
    opened.close()


def test_prints_on_a4_with_figures_whole(browser: Any, audited: Path, tmp_path: Path) -> None:
    opened = Opened(browser, audited / "report.html")
    opened.page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    opened.close()
    content = (tmp_path / "report.pdf").read_bytes()
    boxes = re.findall(rb"/MediaBox \[0 0 ([0-9.]+) ([0-9.]+)\]", content)
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}
    assert 3 <= len(boxes) <= 8
    if shutil.which("pdftotext"):
        pages = subprocess.run(
            ["pdftotext", "-layout", tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True
        ).stdout.split("\f")
        # A figure is whole when its heading and its axis stand on one page.
        assert any("ROC, both axes" in page and "false-positive rate" in page for page in pages)
        assert any("p-values right" in page and "level" in page for page in pages)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, audited: Path, width: int) -> None:
    opened = Opened(browser, audited / "report.html")
    opened.page.set_viewport_size({"width": width, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.click("#table tbody button >> nth=0")
    assert opened.page.evaluate("document.getElementById('record').scrollWidth") <= width
    opened.close()


@pytest.mark.parametrize("made", ["audit", "numbers"])
def test_hostile_strings_cannot_run_nor_break_the_layout(browser: Any, pair: Pair, tmp_path: Path, made: str) -> None:
    if made == "audit":
        write_report(real_audit(pair, tmp_path, hostile=True, reveal=True, n_nonmembers=30))
    else:  # strings that an audit hashes or makes itself: groups, names of attacks, reasons, sentences
        write_report(made_up_audit(tmp_path, 120, names=HOSTILE))
    opened = Opened(browser, tmp_path / "report.html")
    for width in (1280, 360):
        opened.page.set_viewport_size({"width": width, "height": 800})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        rows = opened.page.evaluate("[...document.querySelectorAll('#table tbody tr')].map(r => r.offsetHeight)")
        assert max(rows) < 80, "a cell stays within its row"
        for i in range(0, 25, 2 if width == 360 else 6):  # dialogs are as wide as the page only where it is narrow
            opened.page.locator("#table tbody button").nth(i).click()
            assert opened.page.evaluate("document.getElementById('record').scrollWidth") <= width
            assert opened.page.evaluate("document.querySelector('.bar').offsetHeight") < 200
            opened.page.keyboard.press("Escape")
    assert opened.page.evaluate("document.querySelectorAll('script, img, iframe').length") == 2
    # Each name opens and closes its own direction: the cell beside it stays left to right.
    assert (
        opened.page.evaluate("getComputedStyle(document.querySelector('#table .id button')).unicodeBidi") == "isolate"
    )
    opened.close()


MEASURED_NOTHING = {"value": 0.5, "low": 0.48, "high": 0.52}
VERDICTS = {
    "leaking": ("failed", "✕ Do not release: limit exceeded"),
    "safe": ("passed", "✓ Within the limits"),
    "too small": ("inconclusive", "? Cannot tell"),
    "broken": ("inconclusive", "? Cannot tell"),
}


def verdict_page(audited: Path, name: str, folder: Path) -> Path:
    """Write the page that the real audit would have got, had its figures been those of another case."""
    results, records = read_audit(audited)
    tree = results.model_dump(mode="json")
    if name in ("safe", "broken"):
        low = {"value": 0.01, "low": 0.0, "high": 0.02}
        for attack in tree["attacks"].values():
            attack |= {"auc": MEASURED_NOTHING, "tpr_at_fpr": dict.fromkeys(("0.1", "0.01"), low)}
        tree["decisions"] |= {"n_flagged": 0, "flagged_groups": [], "fewest_flags": 5, "realized_fdp": {}}
        tree["data"] |= {"n_nonmembers": 2000, "n_usable_nonmembers": 2000}
    if name == "too small":
        tree["data"] |= {"n_members": 12, "n_nonmembers": 12, "n_usable_nonmembers": 12, "n_cut": 0}
        tree["decisions"] |= {"n_judged": 12, "n_flagged": 0, "flagged_groups": [], "fewest_flags": None}
    tree["validity"]["backend"]["status"] = tree["validity"]["near_duplicates"]["status"] = "ok"
    if name == "broken":
        tree["validity"]["base"] = {"status": "failed", "sentence": "Target and base are the same model."}
    page = folder / "report.html"
    page.write_text(render_report(Results.model_validate(tree), records), "utf-8")
    return page


@pytest.mark.parametrize("name", VERDICTS)
def test_the_first_screen_holds_the_verdict_and_the_key_figures(
    browser: Any, audited: Path, tmp_path: Path, name: str
) -> None:
    status, word = VERDICTS[name]
    opened = Opened(browser, verdict_page(audited, name, tmp_path))
    for width, height in ((1280, 800), (390, 844)):
        opened.page.set_viewport_size({"width": width, "height": height})
        title = opened.page.locator("#headline")
        assert " ".join(title.inner_text().split()) == word
        assert status in str(title.get_attribute("class"))
        assert opened.page.locator(".points li").count() in (2, 3)
        assert opened.page.evaluate("document.querySelector('.key dd').getBoundingClientRect().bottom") < height - 100
        figures = opened.page.locator(".key > div").evaluate_all(
            "all => all.slice(0, 4).map(f => f.querySelector('dd').getBoundingClientRect().bottom)"
        )
        assert max(figures) < height
    cautions = opened.page.locator(".badge").all_inner_texts()
    assert any("target and base do not fit" in text for text in cautions) == (name == "broken")
    assert opened.page.locator(".key.void").count() == (name == "broken")
    assert ("too few texts to flag any" in opened.page.locator(".key").inner_text()) == (name == "too small")
    colours = opened.page.evaluate(
        "['--bad', '--ok', '--caution'].map(name => getComputedStyle(document.body).getPropertyValue(name))"
    )
    shown = opened.page.evaluate("getComputedStyle(document.getElementById('headline')).getPropertyValue('--tone')")
    assert shown == dict(zip(("failed", "passed", "inconclusive"), colours, strict=True))[status]
    opened.close()


def test_on_a_phone_a_cue_says_that_columns_are_out_of_sight_until_they_are_seen(browser: Any, audited: Path) -> None:
    opened = Opened(browser, audited / "report.html")
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 844})
    cue = page.locator(".scroll-cue >> nth=0")
    wait_until(page, "document.querySelector('.scroll.more-right') !== null")
    assert cue.is_visible()
    page.evaluate("document.querySelector('.scroll').scrollLeft = 10_000")
    wait_until(page, "!document.querySelector('.scroll').classList.contains('more-right')")
    assert not cue.is_visible()
    page.set_viewport_size({"width": 1280, "height": 800})
    wait_until(page, "document.querySelectorAll('.more-right').length === 0")
    assert page.locator(".scroll-cue:visible").count() == 0
    opened.close()


def test_a_share_in_the_dialog_stays_on_its_line(browser: Any, audited: Path) -> None:
    opened = Opened(browser, audited / "report.html")
    page = opened.page
    page.set_viewport_size({"width": 360, "height": 800})
    page.click("#table tbody button >> nth=0")
    cells = page.locator("#r-attacks > div > span:last-child")
    assert "100\u00a0%" in cells.all_inner_texts()
    heights = cells.evaluate_all("all => all.map(c => c.getClientRects().length && c.offsetHeight)")
    lines = cells.evaluate_all("all => all.map(c => parseFloat(getComputedStyle(c).lineHeight))")
    assert all(height < 1.5 * line for height, line in zip(heights, lines, strict=True))
    assert cells.evaluate_all("all => all.every(c => c.scrollWidth <= c.clientWidth)")
    opened.close()


def test_the_verdict_is_printed_with_its_sign_and_the_cue_is_not(browser: Any, audited: Path, tmp_path: Path) -> None:
    opened = Opened(browser, audited / "report.html")
    opened.page.set_viewport_size({"width": 390, "height": 844})
    wait_until(opened.page, "document.querySelector('.scroll.more-right') !== null")
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".scroll-cue:visible").count() == 0
    assert opened.page.locator("#headline .sign").is_visible()
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.sign')).printColorAdjust") == "exact"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.scroll')).maskImage") == "none"
    opened.close()


def test_the_example_of_what_helps_is_closed_and_called_one(opened: Opened) -> None:
    page = opened.page
    example = page.locator("#helps details.example")
    assert example.get_attribute("open") is None
    assert example.locator("summary").inner_text().startswith("An example, measured on another model")
    assert not page.locator("#helps table.helps").is_visible()
    assert "members are flagged" in page.inner_text("#helps .advice")


@pytest.mark.skipif(not AXE.is_file(), reason=f"no accessibility test: no {AXE} (npm pack axe-core, see .ci/run)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, audited: Path, scheme: str) -> None:
    # The page's own policy lets no foreign script in, so this one test goes past it.
    opened = Opened(browser, audited / "report.html", color_scheme=scheme, bypass_csp=True)
    opened.page.add_script_tag(content=AXE.read_text("utf-8"))
    for state in ("page", "flagged", "record"):
        if state == "flagged":
            opened.page.select_option("#f-show", "flagged")
            opened.page.click("summary:has-text('Score, q, length')")
            assert opened.count() > 1
        elif state == "record":
            opened.page.click("#table tbody button >> nth=0")
        found = opened.page.evaluate("axe.run().then(r => r.violations)")
        said = [(v["id"], v["impact"], [n["target"] for n in v["nodes"]][:3]) for v in found]
        assert not [v for v in said if v[1] in ("serious", "critical")], (state, said)
    opened.close()
