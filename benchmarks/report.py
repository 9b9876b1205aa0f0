r"""What a report costs: time to write it, size, time to open it, and how soon the page answers.

    python benchmarks/report.py RESULT [--copies 5]     # of `cae cluster`; needs Chromium

`--copies` shows every picture so many times, to see how the page takes more pictures than the folder has; only the page
is measured then. Prints Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from playwright.sync_api import Page, sync_playwright

from cae.evaluation.study import machine
from cae.report import write_report
from cae.report.kept import ReportCache
from cae.results.saved import SavedResult

FRAMES = """async () => {
  const canvas = document.getElementById("canvas");
  const step = () => canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -40, clientX: 500, clientY: 400 }));
  const times = [];
  let before = await new Promise(requestAnimationFrame);
  for (let i = 0; i < 30; i++) {
    step();
    const now = await new Promise(requestAnimationFrame);
    times.push(now - before);
    before = now;
  }
  return times.sort((a, b) => a - b)[15];
}"""

# From an input to the frame after the one that shows what came of it.
ANSWER = """async () => {
  const start = performance.now();
  act();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""

CLICKS = {
    "open a picture": "#gallery .picture",
    "next picture": "[data-step='1']",
    "close it": "[data-close]",
    "show one group": "#legend button",
    "show all groups again": "#legend button",
    "turn a page": "[data-turn='1']",
    "change colours": "#theme",
}
CHANGE = "const box = document.querySelector('{0}'); box.value = '{1}'; box.dispatchEvent(new Event('{2}'))"
ACTIONS = {
    **{what: f'document.querySelector("{selector}").click()' for what, selector in CLICKS.items()},
    "order by confidence": CHANGE.format("#order", "unsure", "change"),
    "order by file name": CHANGE.format("#order", "path", "change"),
    # The page waits 80 ms for the next letter.
    "search": CHANGE.format("#query", "cat", "input") + "; await new Promise((go) => setTimeout(go, 80))",
    "search for nothing again": CHANGE.format("#query", "", "input")
    + "; await new Promise((go) => setTimeout(go, 80))",
    "arrow key on the map": "document.getElementById('canvas').dispatchEvent("
    "new KeyboardEvent('keydown', { key: 'ArrowRight' }))",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    result = SavedResult.load(options.result)
    if options.copies > 1:
        result = several(result, options.copies)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start, cpu = time.perf_counter(), time.process_time()
        page = write_report(result, Path(folder), lambda _: lambda *_: None)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        start = time.perf_counter()
        write_report(
            result, Path(folder), lambda _: lambda *_: None, kept=ReportCache.load(Path(folder, "report_files"))
        )
        again = time.perf_counter() - start
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"{len(result.assignments):,} pictures; {machine()}\n\n| what | |\n|---|---|")
        if options.copies == 1:
            print(f"| write the report | {seconds:.1f} s, processor time {cpu:.1f} s |")
        print(f"| write it again, as after an edit | {again:.1f} s |")
        print(f"| its size | {size / 1e6:.1f} MB in {len(files)} files |")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        measure(browser.new_page(viewport={"width": 1280, "height": 900}), page)
        browser.close()


def several(result: SavedResult, copies: int) -> SavedResult:
    """Every picture `copies` times."""
    many = replace(result, assignments=pa.concat_tables([result.assignments] * copies), edits=())
    noise = torch.randn(len(many.assignments), result.embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(result.embeddings.float().repeat(copies, 1) + 0.005 * noise, dim=1).half()
    many.__dict__.update(embeddings=x, fitted=result.fitted)
    return many


def measure(page: Page, report: Path) -> None:
    """Print how long the page takes to open and to answer."""
    start = time.perf_counter()
    page.goto(report.as_uri())
    page.locator("#gallery .picture").first.wait_for()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    print(f"| open it | {time.perf_counter() - start:.2f} s |")
    for what, action in ACTIONS.items():
        page.locator("#pictures").scroll_into_view_if_needed()
        took = page.evaluate(ANSWER.replace("act();", f"{{ {action} }}"))
        print(f"| {what} | {took:.0f} ms |")
    page.locator("#map").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    print(f"| a frame of the map while zooming, median | {page.evaluate(FRAMES):.0f} ms |")


if __name__ == "__main__":
    main()
