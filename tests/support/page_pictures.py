"""The pictures of docs/page.md: the page of a real miner, and the report of a demo, in Chromium.

Usage: python -m tests.support.page_pictures PAGE_URL REPORT [--out docs/images]

`python -m neurons.miner --transports http --preset embedded` serves the page at
http://127.0.0.1:8093/, `make demo` writes demo-output/report.html.
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.support.browsing import WatchedPage, chromium

PROMPTS = ("a green tree", "a yellow chair", "a pink mug", "a shiny red car")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("page")
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    expect.set_options(timeout=60_000)
    with chromium() as browser:
        watched = WatchedPage(browser, turning=True, viewport={"width": 1280, "height": 1000})
        watched.page.goto(options.page)
        for prompt in PROMPTS:
            watched.page.get_by_label("Describe one object").fill(prompt)
            watched.page.keyboard.press("Enter")
            expect(watched.page.locator("#title")).to_have_text(prompt)
            expect(watched.page.locator("#tools")).to_be_visible()
            watched.page.get_by_role("button", name="Turn").click()
        save(watched.page, options.out / "page.png")
        watched.close()
        watched = WatchedPage(browser, turning=True, viewport={"width": 1180, "height": 980})
        watched.page.goto(options.report.resolve().as_uri())
        expect(watched.page.get_by_role("button").first).to_have_text("Four views")
        save(watched.page, options.out / "report.png")
        watched.close()


def save(page: Page, path: Path) -> None:
    """A screenshot in 256 colours, which keeps it small."""
    page.wait_for_timeout(3000)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        full = picture.convert("RGB")
    # Median cut, the usual way, gives a thumbnail's colours to the page.
    palette = full.quantize(256, method=Image.Quantize.FASTOCTREE)
    full.quantize(palette=palette).save(path, optimize=True)


if __name__ == "__main__":
    main()
