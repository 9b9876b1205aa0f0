"""`SavedResult`: a result folder, read back. `layout` says what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from cae.data.images import shown_path
from cae.data.listing import list_folder, looks_like_image
from cae.method.fitted import FittedCAE, ModelError
from cae.method.hierarchy import Placement
from cae.method.pipeline import placement
from cae.results.checks import check_consistent, check_unchanged, warn_of_changes
from cae.results.edits import Edit, EditedView
from cae.results.edits_file import History, load_history
from cae.results.layout import (
    ASSIGNMENTS,
    CLUSTERS,
    EMBEDDINGS,
    FORMAT_VERSION,
    MODEL_FOLDER,
    PLACEMENT,
    RUN,
    SIGNS,
    ResultError,
    damaged,
    no_result,
    read_json,
    recorded_checksums,
    require,
)
from cae.utils.checksums import content_hashes, is_version
from cae.utils.files import tidy
from cae.utils.progress import Progress


@dataclass(frozen=True)
class SavedResult:
    """A result folder, read back.

    Images may be missing by now: `image_paths` has None for each of them, so that a table or a page can still show the
    rest. `load` looks for the folder of images at the recorded path, then at its old place relative to the result; pass
    `images` for any other place. `changed` finds files that hold something else by now; it reads them all.

    Attributes:
        folder: the result folder.
        root: the folder of the images; it need not exist any more.
        assignments: N rows, see `FolderResult.assignments`. `path` is below `root`, or absolute for images that
            `cae update` added from elsewhere.
        clusters: one record per cluster: `id`, `name`, `gloss`, `size`, `nouns`, `captions`, `representatives` (paths
            as in the assignments). Look clusters up by `id`.
        run: settings, provenance, scores and what was skipped.
        history: manual changes, which `edited` applies, and those that were taken back.

    Examples:
        >>> result = SavedResult.load("cae-result")
        >>> result.assignments.num_rows, len(result.clusters), result.embeddings.shape
        (30, 3, torch.Size([30, 48]))
    """

    folder: Path
    root: Path
    assignments: pa.Table
    clusters: list[dict[str, Any]]
    run: dict[str, Any]
    history: History = field(default_factory=History)
    _unedited: SavedResult | None = None  # has what edits do not change

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> Self:
        """Read a folder that `write_result` wrote. Model and embeddings are read at first use.

        Args:
            folder: the result folder.
            images: folder that the images lie in now, if they have moved.

        Raises:
            ResultError: no result, or one that is incomplete, damaged, or from another version.
            EditError: the edits beside it are damaged or from a newer version.
        """
        folder = Path(folder)
        tidy(folder)
        run = read_json(folder, RUN)
        if not run.keys() >= set(SIGNS):
            raise no_result(folder, f"{RUN} is of another program")
        version = run.get("format_version")
        if not is_version(version):
            raise ResultError(f"{folder} was written by an earlier version of cae; run `cae cluster` again")
        if version > FORMAT_VERSION:
            raise ResultError(
                f"the result in {folder} has format {version}, this version of cae reads up to {FORMAT_VERSION}; "
                "upgrade cae"
            )
        require(folder, ASSIGNMENTS)
        try:
            assignments = pq.read_table(folder / ASSIGNMENTS)
        except (pa.ArrowException, OSError) as error:
            raise damaged(folder, ASSIGNMENTS, error) from error
        clusters: Any = read_json(folder, CLUSTERS).get("clusters")
        check_consistent(folder, assignments, clusters, run)
        check_unchanged(folder, ASSIGNMENTS, run)
        warn_of_changes(folder, run)
        return cls(folder, _find_root(folder, run, images), assignments, clusters, run, load_history(folder))

    def is_of(self, source: Path) -> bool:
        """Whether the result was made from a folder of images or a file of embeddings, wherever both lie now."""
        files = [Path(file) for file in self.run.get("embeddings", ())]
        origins = (self.root, *files, *(file.parent for file in files))
        return source.resolve() in {origin.resolve() for origin in origins}

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Manual changes that `edited` applies, in their order."""
        return self.history.edits

    @cached_property
    def edited(self) -> Self:
        """The result as people want it: with its edits applied, and none left to apply."""
        return self.seen_in(self.view) if self.edits else self

    @cached_property
    def view(self) -> EditedView:
        """The result with its edits applied, for others to be made on (`make_edits`)."""
        return EditedView(self).apply(self.edits)

    def seen_in(self, view: EditedView) -> Self:
        """The result as a view of it has it, with no edits left to apply."""
        return replace(self, assignments=view.assignments(), clusters=view.records(), history=History(), _unedited=self)

    @property
    def has_images(self) -> bool:
        """Whether anything is known of images: False for a result of embeddings without paths."""
        return self.run.get("rows_are") != "embeddings"

    @property
    def unmatched_edits(self) -> list[str]:
        """A line for each edit that `edited` leaves out because its images are gone or scattered."""
        return self.view.unmatched if self.edits else []

    @cached_property
    def fitted(self) -> FittedCAE:
        """The fitted model.

        Raises:
            ResultError: missing, damaged or from a newer version.
        """
        if self._unedited is not None:
            return self._unedited.fitted
        try:
            return FittedCAE.load(self.folder / MODEL_FOLDER)
        except ModelError as error:
            raise ResultError(str(error)) from error

    @cached_property
    def embeddings(self) -> Tensor:
        """(N, D) float16 image embeddings, unit rows up to rounding, in the order of `assignments`.

        Raises:
            ResultError: missing, damaged, or not of these assignments.
        """
        if self._unedited is not None:
            return self._unedited.embeddings
        tensors = self._tensors(EMBEDDINGS)
        embeddings = tensors.get("embeddings", tensors.get("embedding"))
        if embeddings is None:
            raise damaged(self.folder, EMBEDDINGS, "no tensor embedding")
        if len(embeddings) != len(self.assignments):
            raise damaged(self.folder, EMBEDDINGS, f"{len(embeddings)} rows for {len(self.assignments)} pictures")
        if embeddings.ndim != 2 or embeddings.dtype != torch.float16 or not embeddings.isfinite().all():
            raise damaged(self.folder, EMBEDDINGS, f"{embeddings.dtype} {tuple(embeddings.shape)} in place of rows")
        check_unchanged(self.folder, EMBEDDINGS, self.run)
        return embeddings

    @cached_property
    def leaves(self) -> Tensor:
        """(N,) int64, the leaf of the model's tree of groups that each image is in.

        Raises:
            ResultError: damaged, or a result from before trees.
        """
        tree = self.fitted.hierarchy
        if tree is None or "leaf" not in self.assignments.column_names:
            raise ResultError(f"{self.folder} has no tree of groups: run `cae cluster` again to have one")
        column = self.assignments["leaf"]
        if column.type != pa.int64() or column.null_count:
            raise damaged(self.folder, ASSIGNMENTS, "column leaf holds something else than int64")
        leaves = torch.from_numpy(column.to_numpy().copy())
        if len(leaves) and not 0 <= int(leaves.min()) <= int(leaves.max()) < len(tree.leaves):
            raise damaged(self.folder, ASSIGNMENTS, f"leaf is not one of the tree's {len(tree.leaves)}")
        return leaves

    @cached_property
    def placement(self) -> Placement:
        """Where the N images are on all levels of the model's tree of groups.

        It is in a file of its own. Results from before have none: then it is made again from the embeddings, which are
        rounded to 16 bits, so that confidence and similarity may differ in the third digit.

        Raises:
            ResultError: damaged, or a result from before trees.
        """
        leaf, tree = self.leaves, self.fitted.hierarchy
        assert tree is not None  # there are leaves
        # A file that is there without a checksum is checked, too: what run.json says of it may be what was damaged.
        if PLACEMENT not in recorded_checksums(self.run) and not (self.folder / PLACEMENT).exists():
            return placement(normalize(self.embeddings.float(), dim=1), self.fitted, leaf)
        tensors = self._tensors(PLACEMENT)
        try:
            placed = Placement(leaf, **tensors)
            tree.check(placed)
        except (TypeError, ValueError) as error:
            raise damaged(self.folder, PLACEMENT, error) from error
        check_unchanged(self.folder, PLACEMENT, self.run)
        return placed

    def _tensors(self, name: str) -> dict[str, Tensor]:
        require(self.folder, name)
        try:
            return load_file(self.folder / name)
        except (SafetensorError, OSError) as error:
            raise damaged(self.folder, name, error) from error

    @cached_property
    def image_paths(self) -> list[Path | None]:
        """Where each of the N images lies now; None where there is no file any more.

        A result may come from anybody, and name any file. Only files that are named like images, or begin like one,
        count, and no path leads up, so that no other file is exported or linked.
        """
        paths = self.assignments["path"].to_pylist()
        # A name that is no UTF-8 is shown with a replacement character, and found by listing the folder again.
        lost = any("\ufffd" in path for path in paths) and _there(self.root.is_dir)
        listed = list_folder(self.root).images if lost else ()
        undecodable = {shown_path(path, self.root): path for path in listed}
        places = (undecodable.get(path, self.root / path) for path in paths)
        return [
            place if _is_below(path) and _there(place.is_file) and looks_like_image(place) else None
            for path, place in zip(paths, places, strict=True)
        ]

    def missing(self) -> list[str]:
        """Paths, as in the assignments, of the images that are not there any more."""
        paths = self.assignments["path"].to_pylist()
        return [path for path, place in zip(paths, self.image_paths, strict=True) if place is None]

    def present(self) -> list[tuple[dict[str, Any], Path]]:
        """The rows whose image is still there, as dicts, with its place."""
        rows = zip(self.assignments.to_pylist(), self.image_paths, strict=True)
        return [(row, place) for row, place in rows if place is not None]

    def changed(self, progress: Progress | None = None) -> list[int]:
        """Rows whose file is still there but holds other bytes than those that were clustered. Reads every file.

        Args:
            progress: called with (done, total) files.
        """
        here = [(row, place) for row, place in enumerate(self.image_paths) if place is not None]
        hashes = self.assignments["sha256"].to_pylist()
        found = content_hashes([place for _, place in here], progress)
        return [row for (row, _), now in zip(here, found, strict=True) if now != hashes[row]]


def _is_below(path: str) -> bool:
    return "\0" not in path and ".." not in PurePath(path).parts


def _find_root(folder: Path, run: dict[str, Any], images: str | os.PathLike[str] | None) -> Path:
    """The folder of the images: `images`, or else the recorded path, or else its place relative to the result."""
    if images is not None:
        if not _there(Path(images).is_dir):
            raise ResultError(f"no such folder of pictures: {images}")
        return Path(images)
    recorded, beside = Path(run["root"]), folder / run.get("root_from_here", run["root"])
    return beside if _there(beside.is_dir) and not _there(recorded.is_dir) else recorded


def _there(look: Callable[[], bool]) -> bool:
    """The answer of `Path.is_file` or `is_dir`, and False where the path is too long or otherwise impossible."""
    try:
        return look()
    except OSError:
        return False
