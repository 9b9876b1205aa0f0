r"""How soon `cae open` has done what is asked of it in the browser.

    python benchmarks/app.py RESULT [--copies 10] [--edits 5000]     # of `cae cluster`; needs Chromium

Works on a copy of the result. `--copies` has every picture so many times, as other pictures with embeddings near its
own; `--edits` begins with so many edits. The encoder stands loaded, and texts are noise: its own time depends on which
it is. Prints Markdown: the time from the call that a click makes to the frame after the one that shows what came of it;
the change is on disk by then.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import pyarrow as pa
import torch
from playwright.sync_api import Page, sync_playwright
from torch.nn.functional import normalize

from cae.app import OpenResult, serving
from cae.evaluation.study import machine
from cae.method.hierarchy import Placement
from cae.results.edits import Rename
from cae.results.edits_file import save_edits
from cae.results.make_edits import anchors_of
from cae.results.saved import SavedResult
from cae.results.search import Searcher
from cae.results.writing import write_tables, write_vectors
from cae.utils.files import committing

TIMED = """async () => {
  const start = performance.now();
  await (async () => { %s })();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""
GROUP = "pictures.groups[0].id"
ACTIONS = {
    "rename a group": f"await server.edit('rename', {{ group: {GROUP}, name: `name ${{performance.now()}}` }}, '')",
    "undo": "await stepBack('undo')",
    "redo": "await stepBack('redo')",
    "choose a picture": "picks.set(0, true)",
    "choose 120 more": "picks.set(page.state.found[120], true, true)",
    "pin what is chosen": "await server.edit('pin', { pictures: picks.rows }, '')",
    "move what is chosen": "find('#move-to').value = pictures.groups.at(-1).id; await move()",
    "choose all pictures": "picks.add(page.state.found)",
    "choose none": "picks.clear()",
    "a line around half the map": "const { width: w, height: h } = page.map; "
    "lasso.choose(Array.from({ length: 200 }, (_, i) => [i < 100 ? (w * i) / 99 : (w * (199 - i)) / 99, "
    "i < 100 ? 0 : h / 2]))",
    "more like this": "await seek.like(5)",
    "search by meaning": "await seek.text('red car on snow')",
    "back to all": "picks.clear(); seek.clear()",
    "preview a split": f"await split.open({GROUP})",
    "split": "await split.make()",
    "merge two groups": "await merge([pictures.groups.at(-1).id, pictures.groups.at(-2).id])",
}
REPEATS = 7


class RandomTexts:
    """In place of an encoder."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """(len(texts), width) float32."""
        return torch.randn(len(texts), self.width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--edits", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "result")
        shutil.copytree(options.result, folder)
        if options.copies > 1:
            enlarge(folder, options.copies)
        if options.edits:
            result = SavedResult.load(folder)
            anchors = anchors_of(result.view, result.clusters[0]["id"])
            save_edits([Rename(anchors, f"name {i}") for i in range(options.edits)], folder)
        print(f"{len(SavedResult.load(folder).assignments):,} pictures, {options.edits:,} edits; {machine()}\n")
        print("| what | median | longest |\n|---|---|---|")
        measure(folder, Path(scratch, "exports"))


def enlarge(folder: Path, copies: int) -> None:
    """Every picture so many times, each under a hash of its own."""
    result = SavedResult.load(folder)
    table = pa.concat_tables([result.assignments] * copies).combine_chunks()
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(table))]
    table = table.set_column(table.column_names.index("sha256"), "sha256", pa.array(hashes))
    noise = torch.randn(len(table), result.embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    x = normalize(result.embeddings.float().repeat(copies, 1) + 0.005 * noise, dim=1)
    with committing(folder) as draft:
        write_vectors(draft, x, Placement(*(each.repeat(copies, *[1] * (each.ndim - 1)) for each in result.placement)))
        write_tables(draft, table, result.clusters, {**result.run, "images": len(table)}, result.fitted)


def measure(folder: Path, exports: Path) -> None:
    """Print how long everything takes."""
    start = time.perf_counter()
    opened = OpenResult(folder, exports)
    opened.page()
    print(f"| draw the page, as at the start | {time.perf_counter() - start:.1f} s | |")
    Searcher.encoder = RandomTexts(opened.editor.saved.embeddings.shape[1])  # type: ignore[assignment]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with serving(opened, progress=False) as address:
            act(browser.new_page(viewport={"width": 1280, "height": 900}), address)
            start = time.perf_counter()
        print(f"| end it, and draw the page again | {time.perf_counter() - start:.1f} s | |")
        browser.close()


def act(page: Page, address: str) -> None:
    """Open the page and do everything."""
    start = time.perf_counter()
    page.goto(address)
    page.locator("#gallery .picture").first.wait_for(timeout=120_000)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    print(f"| open it | {time.perf_counter() - start:.2f} s | |")
    times: dict[str, list[float]] = {what: [] for what in ACTIONS}
    for _ in range(REPEATS):
        for what, action in ACTIONS.items():
            times[what].append(page.evaluate(TIMED % action))
    for what, measured in times.items():
        print(f"| {what} | {median(measured):.0f} ms | {max(measured):.0f} ms |")
    failed = page.locator("#said[data-kind='failed']")
    assert not failed.count(), failed.inner_text()


if __name__ == "__main__":
    main()
