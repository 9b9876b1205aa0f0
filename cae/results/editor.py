"""`Editor`: a result held open while people change it, fast enough to be changed with every click.

The edits are those of `cae edit` (`cae.results.edits`), in the same file. Each is applied to the view that is there,
without reading the result anew, and is on disk before the call returns. Several editors and programs may change the
same result: a change names the revision that it was made on, and is refused where there is a later one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cae.results import make_edits
from cae.results.edits import Edit, EditedView, Split
from cae.results.edits_file import EDITS_FILE, History, save_edits
from cae.results.layout import RUN
from cae.results.representatives import representatives
from cae.results.saved import SavedResult
from cae.results.writing import changing

_WATCHED = (RUN, EDITS_FILE)
_KEPT = 30
"""Views before the last edits that are kept: 1 MB each for 100,000 images. Further back, edits are applied anew."""

_PATIENCE = 5
"""Seconds that a page which is open waits for other programs: an edit takes less, and an update may take hours."""


class StaleError(Exception):
    """A change was made on what the result no longer is; nothing was written."""


class Part(NamedTuple):
    """A part that a split would make.

    Attributes:
        name: what it would be called.
        rows: its rows of the assignments.
        typical: the rows that stand for it, the most typical first; of copies, the original alone.
    """

    name: str
    rows: NDArray[np.int64]
    typical: list[int]


class Editor:
    """A result that is held open. Several threads may use it.

    Args:
        folder: the result folder.
        images: folder that the images lie in now, if they have moved.

    Attributes:
        saved: the result as the fit left it.
        revision: tells what the result and its edits are; another one after every change, by whomever.
        fit: tells what the result without its edits is.
        view: the result with its edits applied, which `make_edits` makes others of.
        history: the edits, and those that were taken back.

    Raises:
        ResultError, EditError: no result, or one that is damaged.
        OutputError: the folder cannot be written.

    Examples:
        >>> editor = Editor("cae-result")
        >>> with editor.changing(editor.revision):
        ...     editor.add(make_edits.rename(editor.view, 0, "boats"))
        >>> editor.result.clusters[0]["name"]
        'boats'
    """

    def __init__(self, folder: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> None:
        self.folder, self._images = Path(folder), images
        self._lock = threading.RLock()
        self._read_at: list[tuple[int, int, int] | None]
        self._edited: SavedResult | None
        self._last_split: tuple[tuple[str, int, int], Split] | None
        self._earlier: deque[EditedView] = deque(maxlen=_KEPT)
        with changing(self.folder):
            self._load()

    @property
    def result(self) -> SavedResult:
        """The result with the edits applied."""
        with self._lock:
            if self._edited is None:
                self._edited = self.saved.seen_in(self.view)
            return self._edited

    def pinned(self, cluster: int) -> int:
        """How many images of a cluster are pinned."""
        rows = self.view.rows(self.view.pinned.get(cluster, ()))
        return int((self.view.labels[rows] == cluster).sum())

    @contextmanager
    def looking(self) -> Iterator[Self]:
        """The result as it is on disk, with what other programs have changed since; no thread changes it meanwhile.

        Raises:
            OutputError: another program has changed it and is at work in it again.
        """
        with self._lock:
            if self._stamps() != self._read_at:
                with changing(self.folder, _PATIENCE):
                    self._load()
            yield self

    @contextmanager
    def changing(self, revision: str) -> Iterator[None]:
        """Hold the result for changes that were decided on at a revision.

        Raises:
            StaleError: it has another one by now.
            OutputError: another program is at work in it; who looks at the result meanwhile does not wait for that.
        """
        with self._lock, changing(self.folder, _PATIENCE):
            if self._stamps() != self._read_at:
                self._load()
            if revision != self.revision:
                raise StaleError("the result has been changed since, in another tab or by another program")
            yield

    # Inside `changing`.

    def add(self, *edits: Edit) -> None:
        """Make edits that `make_edits` made of `view`, each of which can be taken back alone."""
        self._save(self.history.add(edits))
        self._go_on(edits)

    def undo(self) -> None:
        """Take the last edit back.

        Raises:
            EditError: there is none.
        """
        self._save(self.history.undo())
        if self._earlier:
            self.view = self._earlier.pop()
        else:
            self.view.reset()
            self.view.apply(self.history.edits)

    def redo(self) -> None:
        """Make the edit again that was taken back last.

        Raises:
            EditError: none was, or another edit was made since.
        """
        self._save(self.history.redo())
        self._go_on(self.history.edits[-1:])

    # At any time.

    def split(self, cluster: int, into: int) -> Split:
        """An edit that takes a cluster apart, computed once for its preview and for the split itself.

        Raises:
            EditError: as `make_edits.split`.
        """
        with self._lock:
            key = (self.revision, cluster, into)
            if self._last_split is None or self._last_split[0] != key:
                self._last_split = key, make_edits.split(self.view, cluster, into)
            return self._last_split[1]

    def preview(self, cluster: int, into: int, n_typical: int) -> list[Part]:
        """What that edit would make of the cluster.

        Raises:
            EditError: as `make_edits.split`.
        """
        with self._lock:
            edit, view = self.split(cluster, into), self.view.branch()
            before = set(view.clusters)
            edit.apply(view)
            ids = [cluster, *sorted(set(view.clusters) - before)]
            paths, hashes = (self.saved.assignments[column].to_pylist() for column in ("path", "sha256"))
            parts = []
            for id in ids:
                rows = view.members(id)
                typical = representatives(view.most_typical(rows).tolist(), paths, hashes, n_typical)
                parts.append(Part(view.clusters[id]["name"], rows, typical))
            return parts

    def _save(self, history: History) -> None:
        """Write the edits to disk, and only then change what is in memory."""
        save_edits(history.edits, self.folder, history.undone)
        self.history, self._edited = history, None
        self._note_files(self._stamps())

    def _go_on(self, edits: Sequence[Edit]) -> None:
        """Apply edits, each to a view of its own, so that taking one back is fast."""
        for edit in edits:
            self._earlier.append(self.view)
            self.view = self.view.branch().apply([edit])

    def _load(self) -> None:
        stamps = self._stamps()  # what is written from here on is read at the next look
        self._read_at = []  # and so is all, if something cannot be read
        loaded = SavedResult.load(self.folder, images=self._images)
        self.history, self.saved = loaded.history, replace(loaded, history=History())
        self.view = EditedView(self.saved).apply(self.history.edits)
        self._edited = self._last_split = None
        self._earlier.clear()
        self._note_files(stamps)

    def _note_files(self, stamps: list[tuple[int, int, int] | None]) -> None:
        self._read_at = stamps
        run, edits = (self.folder / name for name in _WATCHED)
        digest = hashlib.sha256(run.read_bytes())
        self.fit = digest.hexdigest()
        digest.update(edits.read_bytes() if edits.exists() else b"")
        self.revision = digest.hexdigest()

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """Time, size and inode of each watched file, which tell whether it was written to; None for a missing one."""
        stamps: list[tuple[int, int, int] | None] = []
        for name in _WATCHED:
            try:
                stat = (self.folder / name).stat()
                stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except FileNotFoundError:
                stamps.append(None)
        return stamps
