"""The README's screenshots: run the demo, then picture what its terminal and its report show.

make screenshots        # needs Chromium on the machine
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from cae.app import OpenResult, serving
from cae.cli import commands as cli
from cae.cli import terminal

OUT = Path(__file__).parent / "results" / "screenshots"


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, so that the paths in the pictures are those that a reader will see.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), sync_playwright() as playwright:
        svg = run_demo()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        # Twice the pixels, as on the screens that READMEs are read on.
        options = {"device_scale_factor": 2, "reduced_motion": "reduce"}
        page = browser.new_context(viewport={"width": 1200, "height": 860}, **options).new_page()
        page.set_content(svg)
        save(page, "terminal", "svg")
        report = Path(folder, "demo-result", "report", "index.html").as_uri()
        page.goto(report)
        page.locator("#groups").evaluate("section => section.scrollIntoView()")
        page.wait_for_timeout(1000)
        save(page, "report")
        page.locator("#canvas").evaluate("canvas => canvas.focus({ preventScroll: true })")
        page.keyboard.press("ArrowRight")
        page.locator("#map").evaluate("section => section.scrollIntoView()")
        page.wait_for_timeout(1000)
        save(page, "map")
        with serving(OpenResult("demo-result")) as address:
            picture_app(browser.new_context(viewport={"width": 1200, "height": 860}, **options).new_page(), address)
        browser.close()


def picture_app(page: Page, address: str) -> None:
    """`cae open` at work: a group has been renamed, and pictures are chosen."""
    page.goto(address)
    page.locator(".card").first.wait_for()
    page.locator("[data-do='rename']").first.click()
    page.locator(".rename input").fill("animals")
    page.keyboard.press("Enter")
    page.locator("#said", has_text="Saved").wait_for()
    for box in page.locator("#gallery .pick").all()[2:6]:
        box.check()
    page.locator("#groups").evaluate("section => section.scrollIntoView()")
    page.wait_for_timeout(1000)
    save(page, "app")


def run_demo() -> str:
    """Run `cae demo`; returns its terminal as SVG."""
    console = Console(record=True, file=io.StringIO(), width=110)
    console.print("$ cae demo", highlight=False, style="bold")
    terminal.out = terminal.err = console
    cli.app(["demo"], standalone_mode=False)
    console.print()  # below the last line the picture would end at the letters' feet
    return console.export_svg(title="cae demo")


def save(page: Page, name: str, selector: str | None = None) -> None:
    """Write what is in sight, or one element, as WebP."""
    png = page.locator(selector).screenshot() if selector else page.screenshot()
    Image.open(io.BytesIO(png)).convert("RGB").save(OUT / f"{name}.webp", quality=70, method=6)


if __name__ == "__main__":
    main()
