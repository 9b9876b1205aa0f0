r"""How long a search takes, over a result as large as one likes.

    python benchmarks/search.py RESULT [--rows 100000] [--width 512]     # of `cae cluster`

Its rows are repeated, with random embeddings in place of its own. Prints Markdown: the median of ten searches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn.functional import normalize

from cae.evaluation.study import machine
from cae.results.saved import SavedResult
from cae.results.search import Searcher


class RandomTexts:
    """In place of an encoder, whose own time depends on which it is: texts are noise."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """(len(texts), width) float32."""
        return normalize(torch.randn(len(texts), self.width), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    result = SavedResult.load(options.result)
    rows = np.resize(np.arange(len(result.assignments)), options.rows)
    many = replace(result, assignments=result.assignments.take(rows), edits=())
    x = torch.randn(options.rows, options.width, generator=torch.Generator().manual_seed(0))
    many.__dict__.update(embeddings=normalize(x, dim=1).half(), fitted=result.fitted)
    searcher = Searcher(many)
    searcher.__dict__["encoder"] = RandomTexts(options.width)
    print(f"{options.rows:,} rows of width {options.width}; {machine()}\n\n| search | first | median |\n|---|---|---|")
    for what, search in {"a text": lambda: searcher.text("a"), "like a row": lambda: searcher.like_row(0)}.items():
        times = [timed(search) for _ in range(10)]
        print(f"| {what} | {times[0] * 1000:.0f} ms | {median(times) * 1000:.0f} ms |")


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
