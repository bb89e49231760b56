"""The search of the documentation site works where its pages are opened from the disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chromium import CHROMIUM

playwright = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")

ROOT = Path(__file__).parents[2]
SITE = f"""
INHERIT: {ROOT}/mkdocs.yml
docs_dir: docs
nav: [index.md, other.md]
hooks: []
plugins: [search, offline]
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser tests: no chromium found (apt-get install chromium)")
def test_search_finds_pages_opened_from_the_disk(tmp_path: Path) -> None:
    """A word of one page is found from the other, and nothing is fetched from elsewhere."""
    (tmp_path / "mkdocs.yml").write_text(SITE)
    shutil.copytree(ROOT / "docs" / "javascripts", tmp_path / "docs" / "javascripts")
    (tmp_path / "docs" / "index.md").write_text("# Start\n\nNothing here.\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n\nA pomegranate.\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})

    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "site" / "index.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("pomegranate")
        found = page.wait_for_selector(".md-search-result__link").get_attribute("href")

    assert found.partition("?")[0] == (tmp_path / "site" / "other.html").as_uri()
    assert all(url.startswith(tmp_path.as_uri()) for url in asked)
