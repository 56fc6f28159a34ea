"""The picture of docs/report.md: parts of the quickstart's report, as Chromium shows them.

python docs/figures/report.py runs/quickstart/report.html
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, PARTS = 1000, ("#training", "#map", "#worth")
OUT = Path(__file__).with_suffix(".png")


def main() -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        page.wait_for_selector("#map .bk-Figure")
        page.wait_for_timeout(1000)
        parts = [Image.open(io.BytesIO(page.locator(part).screenshot())) for part in PARTS]
        browser.close()
    picture = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    picture.quantize(160).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
