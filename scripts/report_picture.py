"""Take a picture of a report's first screen: python scripts/report_picture.py demo/report.html docs/images/report.png.

Needs the Python package `playwright` and a Chromium of the system. The PNG is reduced to 64 colours by the package
`pillow`, so that it stays small.
"""

import argparse
import os
import shutil
from pathlib import Path

COLOURS = 64


def main() -> None:
    """Open the report at the size asked for, and write what is seen without scrolling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", default="1280x800", help="width x height of the screen in pixels")
    parser.add_argument("--whole", action="store_true", help="the whole page, not only the first screen")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    take_picture(arguments.report, arguments.picture, width=width, height=height, whole=arguments.whole)


def take_picture(report: Path, picture: Path, *, width: int, height: int, whole: bool = False) -> None:
    """Write a PNG of a report.

    Args:
        report: The page.
        picture: The PNG; its folder is made.
        width: Of the screen, pixels.
        height: Of the screen, pixels.
        whole: Take all of the page, however long.
    """
    from PIL import Image
    from playwright.sync_api import sync_playwright

    picture.parent.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("LTMIA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(report.resolve().as_uri())
        page.screenshot(path=picture, full_page=whole)
        browser.close()
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main()
