"""The README's screenshots: run the demo, then picture what its terminal and its report show.

make screenshots        # needs Chromium on the machine
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from cae import cli, terminal

OUT = Path(__file__).parent / "results" / "screenshots"


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        svg = run_demo(Path(folder, "demo-result"))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        # Twice the pixels, as on the screens that READMEs are read on.
        options = {"device_scale_factor": 2, "reduced_motion": "reduce"}
        page = browser.new_context(viewport={"width": 1200, "height": 860}, **options).new_page()
        page.set_content(svg)
        save(page, "terminal", "svg")
        report = Path(folder, "demo-result", "report", "index.html").as_uri()
        page.goto(report)
        page.locator("#groups").scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        page.evaluate("scrollTo(0, 0)")
        save(page, "report")
        page.locator("#map").evaluate("section => section.scrollIntoView()")
        page.locator("#canvas").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(1000)
        save(page, "map")
        browser.close()


def run_demo(out: Path) -> str:
    """Run `cae demo`; returns its terminal as SVG."""
    console = Console(record=True, file=io.StringIO(), width=110)
    console.print("$ cae demo", highlight=False, style="bold")
    terminal.out = terminal.err = console
    cli.app(["demo", "--out", str(out)], standalone_mode=False)
    # Where the result went is a temporary folder's name, of no use to readers.
    return (
        console.export_svg(title="cae demo")
        .replace(str(out).replace("/", "&#x2F;"), "demo-result")
        .replace(str(out), "demo-result")
    )


def save(page: Page, name: str, selector: str | None = None) -> None:
    """Write what is in sight, or one element, as WebP."""
    png = page.locator(selector).screenshot() if selector else page.screenshot()
    Image.open(io.BytesIO(png)).convert("RGB").save(OUT / f"{name}.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
