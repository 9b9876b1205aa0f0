"""Thumbnails of all images, many to a file: 100,000 images are some 1,500 sheets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cae.data import ImageError, read_image
from cae.data.images import PAPER_WHITE
from cae.utils.progress import Progress

COLUMNS = 8
PER_SHEET = COLUMNS * COLUMNS
_QUALITY = 72
_METHOD = 2
"""Of WebP: three times as fast as the default, 4, for files about 5% larger."""


def thumbnail_side(n_images: int) -> int:
    """Pixels of the longer side, chosen so that the report of any folder stays a size that can be sent on."""
    return 192 if n_images <= 2_000 else 128 if n_images <= 20_000 else 80


def sheet_name(sheet: int) -> str:
    """File of a sheet."""
    return f"{sheet:05d}.webp"


class Thumbnails(NamedTuple):
    """Where the thumbnails of N images lie on S sheets, and how large they are.

    Thumbnails fill a sheet row by row, in the upper left corner of cells of equal size, the largest of the sheet.

    Attributes:
        place: (N,) int32, number of the sheet times `PER_SHEET` and number of the cell; -1 for an image that had gone.
        size: (N, 2) uint8 width and height; 0 for an image that had gone or could not be read.
        sheets: (S, 2) uint8 pixels of a cell, and how many of the cells are taken.
    """

    place: NDArray[np.int32]
    size: NDArray[np.uint8]
    sheets: NDArray[np.uint8]

    @classmethod
    def none(cls, n: int) -> Self:
        """No thumbnail yet of n images."""
        return cls(np.full(n, -1, np.int32), np.zeros((n, 2), np.uint8), np.zeros((0, 2), np.uint8))

    def padded(self, n: int) -> Self:
        """The same, with none yet of the images that have come since, n in all."""
        new = self.none(n - len(self.place))
        return self._replace(place=np.concatenate([self.place, new.place]), size=np.concatenate([self.size, new.size]))


def write_sheets(
    paths: Sequence[Path | None],
    order: Iterable[int],
    folder: Path,
    there: Thumbnails,
    side: int,
    progress: Callable[[], Progress] | None = None,
) -> Thumbnails:
    """Write the thumbnails that are not there yet, `PER_SHEET` to a file. Images are never enlarged.

    Args:
        paths: N files; None for one that is missing.
        order: order of the thumbnails on the sheets: what is looked at together should lie together.
        folder: an existing folder, with the sheets that are there.
        there: thumbnails of the same N images that are there.
        side: pixels of the longer side, at most.
        progress: called if there is work; returns a callback for (done, total) images.

    Returns:
        The thumbnails that are there now.
    """
    work = [(row, path) for row in order if there.place[row] < 0 and (path := paths[row]) is not None]
    if not work:
        return there
    report = progress() if progress else None
    batches = [work[start : start + PER_SHEET] for start in range(0, len(work), PER_SHEET)]
    targets = [folder / sheet_name(len(there.sheets) + i) for i in range(len(batches))]
    place, size, sheets = there.place.copy(), there.size.copy(), list(there.sheets)
    done = 0
    # Threads: Pillow lets go of the interpreter's lock while it decodes, shrinks and encodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = [[path for _, path in batch] for batch in batches]
        for batch, sizes in zip(batches, pool.map(_write_sheet, files, targets, repeat(side)), strict=True):
            rows = [row for row, _ in batch]
            place[rows] = len(sheets) * PER_SHEET + np.arange(len(rows))
            size[rows] = sizes
            sheets.append(np.array([sizes.max(), len(rows)], np.uint8))
            done += len(rows)
            if report:
                report(done, len(work))
    return Thumbnails(place, size, np.stack(sheets))


def _write_sheet(paths: Sequence[Path], target: Path, side: int) -> NDArray[np.uint8]:
    thumbnails = [_thumbnail(path, side) for path in paths]
    sizes = np.array([(0, 0) if image is None else image.size for image in thumbnails], dtype=np.uint8)
    cell = max(int(sizes.max()), 1)
    rows = -(-len(paths) // COLUMNS)
    sheet = Image.new("RGB", (min(len(paths), COLUMNS) * cell, rows * cell), PAPER_WHITE)
    for place, image in enumerate(thumbnails):
        if image is not None:
            sheet.paste(image, (place % COLUMNS * cell, place // COLUMNS * cell))
    sheet.save(target, quality=_QUALITY, method=_METHOD)
    return sizes


def _thumbnail(path: Path, side: int) -> Image.Image | None:
    try:
        image = read_image(path, side)
    except ImageError:
        return None
    image.thumbnail((side, side))
    return image
