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

from cae.results.edits import Anchors, Edit, EditedView, EditError, Merge, Move, Pin, Rename, Split, UnmatchedError
from cae.results.edits_file import EDITS_FILE, load_history, save_edits
from cae.results.layout import RUN
from cae.results.make_edits import anchors_of, check_name, pins_of, split_into
from cae.results.saved import SavedResult
from cae.results.writing import changing

_WATCHED = (RUN, EDITS_FILE)
_KEPT = 30
"""Views before the last edits that are kept: 1 MB each for 100,000 images. Further back, edits are applied anew."""


class StaleError(Exception):
    """A change was made on what the result no longer is; nothing was written."""


class Part(NamedTuple):
    """A part that a split would make.

    Attributes:
        name: what it would be called.
        rows: its rows of the assignments, the most typical first.
    """

    name: str
    rows: NDArray[np.int64]


class Editor:
    """A result that is held open. Several threads may use it.

    Args:
        folder: the result folder.
        images: folder that the images lie in now, if they have moved.

    Attributes:
        saved: the result as the fit left it.
        revision: tells what the result and its edits are; another one after every change, by whomever.
        fit: tells what the result without its edits is.
        unmatched: a line for each edit that could not be applied.

    Raises:
        ResultError, EditError: no result, or one that is damaged.
        OutputError: the folder cannot be written.

    Examples:
        >>> editor = Editor("cae-result")
        >>> with editor.changing(editor.revision):
        ...     editor.rename(0, "boats")
        >>> editor.result.clusters[0]["name"]
        'boats'
    """

    def __init__(self, folder: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> None:
        self.folder, self._images = Path(folder), images
        self._lock = threading.RLock()
        self._read_at: list[tuple[int, int, int] | None]
        self._edited: SavedResult | None
        self._last_split: tuple[tuple[str, int, int], Split] | None
        self.unmatched: list[str]
        self._earlier: deque[tuple[EditedView, int]] = deque(maxlen=_KEPT)  # and how many were unmatched
        with changing(self.folder):
            self._load()

    @property
    def result(self) -> SavedResult:
        """The result with the edits applied."""
        with self._lock:
            if self._edited is None:
                self._edited = replace(
                    self.saved,
                    assignments=self._view.assignments(),
                    clusters=self._view.records(),
                    edits=(),
                    _unedited=self.saved,
                )
            return self._edited

    @property
    def history(self) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
        """The edits, and those that were taken back and can be made again, the next one first."""
        return self._edits, self._undone

    def pinned(self, cluster: int) -> int:
        """How many images of a cluster are pinned."""
        rows = self._view.rows(self._view.pinned.get(cluster, ()))
        return int((self._view.labels[rows] == cluster).sum())

    @contextmanager
    def looking(self) -> Iterator[Self]:
        """The result as it is on disk, with what other programs have changed since; no thread changes it meanwhile."""
        with self._lock:
            if self._stamps() != self._read_at:
                with changing(self.folder):
                    self._load()
            yield self

    @contextmanager
    def changing(self, revision: str) -> Iterator[None]:
        """Hold the result for changes that were decided on at a revision.

        Raises:
            StaleError: it has another one by now.
        """
        with self._lock, changing(self.folder):
            if self._stamps() != self._read_at:
                self._load()
            if revision != self.revision:
                raise StaleError("the result has been changed since, in another tab or by another program")
            yield

    # Inside `changing`.

    def rename(self, cluster: int, name: str) -> None:
        """Call a cluster something else.

        Raises:
            EditError: no such cluster, or the name is empty or taken.
        """
        self._make(Rename(self._anchors(cluster), check_name(self.result, name, [cluster])))

    def merge(self, clusters: Sequence[int], name: str | None = None) -> None:
        """Make several clusters one, by default under the first one's name.

        Raises:
            EditError: fewer than two clusters, or no such one; or the name is empty or taken.
        """
        ids = list(dict.fromkeys(clusters))
        if len(ids) < 2:
            raise EditError("merging takes at least two groups; choose another")
        anchors = tuple(self._anchors(id) for id in ids)
        self._make(Merge(anchors, anchors[0].name if name is None else check_name(self.result, name, ids)))

    def split(self, cluster: int, into: int) -> None:
        """Take a cluster apart by what its images look like, as `preview` shows.

        Raises:
            EditError: no such cluster, or fewer different images than parts.
        """
        self._make(self._split(cluster, into))

    def pin(self, rows: Sequence[int]) -> None:
        """Keep images together, those of each cluster under its name, whatever the next fit finds.

        Raises:
            EditError: no image, or no such one.
        """
        self._make(*pins_of(self._view, self._checked(rows)))

    def pin_cluster(self, cluster: int) -> None:
        """Keep all images of a cluster together under its name.

        Raises:
            EditError: no such cluster.
        """
        self._make(Pin(self._anchors(cluster, every=True)))

    def move(self, rows: Sequence[int], to: int) -> None:
        """Put images into another cluster.

        Raises:
            EditError: no image, or no such one; or no such cluster.
        """
        cluster, pictures = self._anchors(to), self._view.anchors(self._checked(rows), "the chosen pictures", None)
        self._make(Move(cluster, pictures.pictures))

    def undo(self) -> None:
        """Take the last edit back.

        Raises:
            EditError: there is none.
        """
        if not self._edits:
            raise EditError(f"there are no edits in {self.folder}, and so nothing to take back")
        self._save(self._edits[:-1], (self._edits[-1], *self._undone))
        if self._earlier:
            self._view, unmatched = self._earlier.pop()
            del self.unmatched[unmatched:]
        else:
            self._replay()

    def redo(self) -> None:
        """Make the edit again that was taken back last.

        Raises:
            EditError: none was, or another edit was made since.
        """
        if not self._undone:
            raise EditError(f"no edit in {self.folder} was taken back last, and so there is none to make again")
        edit, *undone = self._undone
        self._save((*self._edits, edit), tuple(undone))
        self._go_on([edit])

    # At any time.

    def preview(self, cluster: int, into: int) -> list[Part]:
        """What `split` would make of a cluster.

        Raises:
            EditError: as `split`.
        """
        with self._lock:
            edit, view = self._split(cluster, into), self._view.branch()
            before = set(view.clusters)
            edit.apply(view)
            ids = [cluster, *sorted(set(view.clusters) - before)]
            return [Part(view.clusters[id]["name"], view.most_typical(view.members(id))) for id in ids]

    def _anchors(self, cluster: int, *, every: bool = False) -> Anchors:
        if not len(self._view.members(cluster)):
            raise EditError(f"there is no group {cluster} any more")
        return anchors_of(self._view, cluster, every=every)

    def _checked(self, rows: Sequence[int]) -> NDArray[np.int64]:
        if not rows:
            raise EditError("no picture is chosen: choose one or more")
        n = len(self._view.labels)
        if outside := [row for row in rows if not 0 <= row < n]:
            raise EditError(f"there is no picture {outside[0]}: the result has {n}")
        return np.array(list(dict.fromkeys(rows)), dtype=np.int64)

    def _split(self, cluster: int, into: int) -> Split:
        """The edit, computed once for the preview and for the split itself."""
        key = (self.revision, cluster, into)
        if self._last_split is None or self._last_split[0] != key:
            anchors = self._anchors(cluster)
            self._last_split = key, Split(anchors, split_into(self._view, cluster, into))
        return self._last_split[1]

    def _make(self, *edits: Edit) -> None:
        self._save((*self._edits, *edits), ())
        self._go_on(edits)

    def _save(self, edits: tuple[Edit, ...], undone: tuple[Edit, ...]) -> None:
        """Write the edits to disk, and only then change what is in memory."""
        save_edits(edits, self.folder, undone)
        self._edits, self._undone, self._edited = edits, undone, None
        self._note_files(self._stamps())

    def _go_on(self, edits: Sequence[Edit]) -> None:
        """Apply edits, each to a view of its own, so that taking one back is fast."""
        for edit in edits:
            self._earlier.append((self._view, len(self.unmatched)))
            self._view = self._view.branch()
            self._apply([edit])

    def _apply(self, edits: Sequence[Edit]) -> None:
        for edit in edits:
            try:
                edit.apply(self._view)
            except UnmatchedError as reason:
                self.unmatched.append(f"{edit}: {reason}")

    def _replay(self) -> None:
        self._view.reset()
        self.unmatched = []
        self._apply(self._edits)

    def _load(self) -> None:
        stamps = self._stamps()  # what is written from here on is read at the next look
        self._read_at = []  # and so is all, if something cannot be read
        self._edits, self._undone = load_history(self.folder)
        self.saved = replace(SavedResult.load(self.folder, images=self._images), edits=())
        self._view = EditedView(self.saved)
        self._edited = self._last_split = None
        self._earlier.clear()
        self._replay()
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
