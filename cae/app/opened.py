"""A result that is open: what the page shows of it, and what it has been asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from itertools import chain, count
from pathlib import Path
from typing import Any

from torch import Tensor

from cae.data.images import shown_path
from cae.report import REPORT_FOLDER, redraw_report, write_report
from cae.report.data import PAGE_FILES, Arranged, describe_edited, fused
from cae.report.page import PAGE
from cae.results.duplicates import Duplicates, find_duplicates, write_duplicates
from cae.results.editor import Editor
from cae.results.export import Exported, ExportError, PlaceError, Placing, Target, export
from cae.results.saved import SavedResult
from cae.results.search import Hit, Searcher
from cae.utils.names import safe_name
from cae.utils.progress import Reporter, silent

FOUND = 120
"""How many pictures a search by meaning finds: a page of the gallery."""


class OpenResult:
    """A result folder that a page is open on. Several threads may use it.

    Args:
        folder: the result folder.
        exports: the folder below which exports from the page go.
        images: folder that the images lie in now, if they have moved.
        encoder: spec of the encoder to search with, where the result does not say.
        encoder_weights: a local weights file for `open_clip` encoders.
        device: device that queries are encoded on.

    Raises:
        ResultError, EditError: no result, or one that is damaged.
        OutputError: the folder cannot be written.

    Examples:
        >>> opened = OpenResult("cae-result")
        >>> [hit.row for hit in opened.search(None, like=0)][:2]  # as the page asks
        [..., ...]
        >>> sorted(group["size"] for group in opened.state()["groups"])
        [10, 10, 10]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        exports: str | os.PathLike[str] = "cae-export",
        *,
        images: str | os.PathLike[str] | None = None,
        encoder: str | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.editor, self.exports = Editor(folder, images), Path(exports)
        self._images = None if images is None else Path(images)
        self._make_searcher: Callable[[SavedResult], Searcher] = lambda saved: Searcher(
            saved, encoder=encoder, encoder_weights=encoder_weights, device=device
        )
        self._drawing, self._searching, self._comparing, self._exporting = (threading.Lock() for _ in range(4))
        self._drawn_fit = self._drawn_revision = ""
        self._vectors: tuple[str, Tensor] | None = None
        self._arranged: dict[bytes, Arranged] = {}
        self._searcher: tuple[str, Searcher] | None = None
        self._duplicates: tuple[str, Duplicates] | None = None

    # The page.

    @property
    def page_files(self) -> Path:
        """The folder of the page's files."""
        return self.editor.folder / REPORT_FOLDER / PAGE_FILES

    def page(self, reporter: Reporter = silent, *, with_edits: bool = False) -> Path:
        """The page on disk, drawn again if it is of another fit.

        Args:
            reporter: makes the progress callback of each step.
            with_edits: draw it also if it does not show the last edits, which `state` brings to a page that is open.

        Raises:
            OutputError, ResultError: as `write_report`.
        """
        with self._drawing:
            with self.editor.looking() as editor:
                fit, revision, z = editor.fit, editor.revision, self._fused(editor)
            if fit != self._drawn_fit or (with_edits and revision != self._drawn_revision):
                folder = self.editor.folder
                if not redraw_report(folder, reporter, images=self._images, z=z):
                    saved = SavedResult.load(folder, images=self._images)
                    write_report(saved, folder / REPORT_FOLDER, reporter, z=z)
                self._drawn_fit, self._drawn_revision = fit, revision
        return self.editor.folder / REPORT_FOLDER / PAGE

    def state(self) -> dict[str, Any]:
        """What the page shows that edits change, and what can be taken back and made again."""
        with self.editor.looking() as editor:
            state = describe_edited(editor.result, self._fused(editor), self._arranged)
            for group in state["groups"]:
                group["pinned"] = editor.pinned(group["id"])
            return {
                **state,
                "revision": editor.revision,
                "fit": editor.fit,
                "undo": next(map(str, reversed(editor.history.edits)), None),
                "redo": next(map(str, editor.history.undone), None),
                "unmatched": editor.view.unmatched,
                "exports": shown_path(self.exports.absolute()),
            }

    def _fused(self, editor: Editor) -> Tensor:
        """What was clustered of each image; it takes seconds for 100,000, and follows from the fit alone."""
        if self._vectors is None or self._vectors[0] != editor.fit:
            self._vectors = editor.fit, fused(editor.saved)
            self._arranged.clear()
        return self._vectors[1]

    def picture(self, row: int) -> Path | None:
        """Where the image of a row lies; None if there is no such row, or no file any more."""
        places = self.editor.saved.image_paths
        place = places[row] if row < len(places) else None
        return place if place is not None and place.is_file() else None

    # Looking for pictures, and taking them away.

    def search(self, query: str | None, like: int | None) -> list[Hit]:
        """The images that show what a text says, or that are like that of a row.

        Raises:
            SearchError, EncoderError, ModelError, ResultError: as `Searcher`.
        """
        with self._searching:
            with self.editor.looking() as editor:
                if self._searcher is None or self._searcher[0] != editor.fit:
                    self._searcher = editor.fit, self._make_searcher(editor.result)
                searcher = self._searcher[1]
                searcher.result = editor.result
            return searcher.like_row(like, FOUND) if like is not None else searcher.text(query or "", FOUND)

    def duplicates(self) -> Duplicates:
        """The images that are there more than once, looked for once.

        Raises:
            ResultError: the result has no embeddings.
        """
        with self._comparing:
            with self.editor.looking() as editor:
                fit, saved = editor.fit, editor.saved
            if self._duplicates is None or self._duplicates[0] != fit:
                self._duplicates = fit, find_duplicates(saved)
            return self._duplicates[1]

    def list_duplicates(self) -> Path:
        """Write the list of duplicates to the folder of the exports; returns the file, a new one each time.

        Raises:
            OSError: it cannot be written.
        """
        found = self.duplicates()
        names = chain(["duplicates.csv"], (f"duplicates ({i}).csv" for i in count(2)))
        with self._exporting:  # somebody may have made notes in an earlier one
            place = next(place for name in names if not (place := self.exports / name).exists())
            write_duplicates(found, place)
        return place

    def export(
        self,
        rows: Collection[int] | None,
        to: Target,
        name: str,
        *,
        by: Placing = "copy",
        nested: bool = False,
        without_duplicates: bool = False,
    ) -> tuple[Path, Exported]:
        """Take images away into a folder of the exports; returns it.

        Args:
            rows: rows of the images; None for all.
            to: the form.
            name: name of the folder, made safe.
            by: how images get there.
            nested: see `cae.results.export.export`.
            without_duplicates: leave out all copies but the best.

        Raises:
            ExportError: as `cae.results.export.export`, or there is nothing to export.
        """
        left_out = set(self.duplicates().rows) if without_duplicates else set()
        with self.editor.looking() as editor:
            result = editor.result
        everything = set(range(len(result.assignments)))
        if rows is not None:
            left_out |= everything - set(rows)
        if left_out >= everything:
            raise ExportError("there is nothing to export: choose pictures")
        place = self.exports / safe_name(name)
        try:
            with self._exporting:  # two into one folder would each take the other's files for a stranger's
                return place, export(result, to, place, by=by, nested=nested, without=left_out)
        except PlaceError as error:
            remedy = "give another name, or another folder with `cae open --exports`"
            raise ExportError(f"{error.problem}; {remedy}") from error
