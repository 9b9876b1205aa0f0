"""A result on disk: what `cae cluster` writes, and `SavedResult`, which reads it back.

OUT/assignments.parquet, .csv   a row an image
OUT/embeddings.safetensors      `embedding` (N, D) float16 unit rows, in the order of the assignments
OUT/clusters.json               a record a cluster, under `clusters`
OUT/model/                      the fitted state (`cae.method.fitted`), for `cae predict`
OUT/run.json                    format version, settings, provenance, scores, what was skipped, checksums of all files
OUT/edits.json                  what people changed by hand since, if they did (`cae.results.edits`)

The images themselves stay where they are. A result knows each by its path below the folder it was found in, and by
the SHA-256 of its bytes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cae.data.images import shown_path
from cae.data.listing import list_folder, looks_like_image
from cae.method.fitted import FittedCAE, ModelError
from cae.results.edits import Edit, EditedResult, apply_edits
from cae.results.edits_file import load_edits
from cae.utils.checksums import check_kinds, content_hash, content_hashes, is_version, json_hash, load_json
from cae.utils.files import committing, dump_json, holding, tidy

if TYPE_CHECKING:  # brings Lightning, which takes seconds to import
    from cae.results.folder import FolderResult

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""From 2 on there are checksums."""
MODEL_FOLDER = "model"
_ASSIGNMENTS, _ASSIGNMENTS_CSV = "assignments.parquet", "assignments.csv"
_EMBEDDINGS = "embeddings.safetensors"
_CLUSTERS = "clusters.json"
_RUN = "run.json"


class OutputError(OSError):
    """Results cannot be written where they were asked for."""


class ResultError(ValueError):
    """A result folder cannot be used; the message says why and what to do."""


def check_writable(out: Path) -> None:
    """Find out before the work whether results can be written.

    Raises:
        OutputError: `out` is a file, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
        ) from error


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold a result while it is read, changed and written: changes by two processes at once come one after the other.

    Raises:
        ResultError: no result.
        OSError: its folder cannot be written.
    """
    tidy(folder)
    _require(folder, _RUN)
    with holding(folder / ".lock"):
        yield


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV, with lists of strings joined by '; '."""
    for i, column in enumerate(table.schema):
        if pa.types.is_list(column.type):
            joined = ["; ".join(texts) for texts in table[column.name].to_pylist()]
            table = table.set_column(i, column.name, pa.array(joined, pa.string()))
    pacsv.write_csv(table, path)


def write_assignments(table: pa.Table, out: Path) -> None:
    """Write `assignments.parquet` and `.csv`."""
    with committing(out) as draft:
        _write_assignments(table, draft)


def _write_assignments(table: pa.Table, out: Path) -> None:
    pq.write_table(table, out / _ASSIGNMENTS)
    write_csv(table, out / _ASSIGNMENTS_CSV)


def write_result(result: FolderResult, out: Path, run: dict[str, Any]) -> None:
    """Write all files of a clustering run; they take their places together (`cae.utils.files.committing`).

    Args:
        result: the result of the run.
        out: an existing folder.
        run: method, scores and timings of the run; provenance and settings are added.
    """
    run = {
        "root": os.fspath(result.root.absolute()),
        **_from_here(result.root, out),
        **result.source,
        "images": len(result.embeddings),
        # Images by their weight of each modality, in tenths from 0 to 1.
        "beta_histogram": {
            modality: torch.histc(weight.float(), bins=10, min=0, max=1).int().tolist()
            for modality, weight in result.weights().items()
        },
        "beta_mean": {modality: round(float(weight.mean()), 4) for modality, weight in result.weights().items()},
        "skipped": {result.relative(path): reason for path, reason in result.skipped.items()},
        "config": asdict(result.fitted.config),
        **result.fitted.provenance,
        **run,
    }
    with committing(out) as draft:
        result.fitted.save(draft / MODEL_FOLDER)
        write_tables(draft, result.assignments(), result.embeddings, result.clusters(), run)


def _from_here(root: Path, out: Path) -> dict[str, str]:
    """Where the images lie as seen from the result, so that both may move together."""
    try:
        return {"root_from_here": os.path.relpath(root, out)}
    except ValueError:  # on another drive of Windows
        return {}


def write_tables(
    out: Path, assignments: pa.Table, embeddings: Tensor, clusters: list[dict[str, Any]], run: dict[str, Any]
) -> None:
    """Write everything but the model.

    Args:
        out: a draft of the result folder.
        assignments: N rows.
        embeddings: (N, D) float unit rows.
        clusters: a record a cluster.
        run: the contents of `run.json` besides the format version.
    """
    _write_assignments(assignments, out)
    save_file({"embedding": embeddings.half().contiguous()}, out / _EMBEDDINGS)
    dump_json({"clusters": clusters}, out / _CLUSTERS)
    run = {**run, "format_version": FORMAT_VERSION}
    dump_json({**run, "sha256": _checksums(out, (_ASSIGNMENTS, _EMBEDDINGS, _CLUSTERS), run)}, out / _RUN)


def _checksums(folder: Path, names: Sequence[str], run: Mapping[str, Any]) -> dict[str, str | None]:
    """Of files beside `run.json`, and of what it says besides."""
    said = {key: value for key, value in run.items() if key != "sha256"}
    return {**{name: content_hash(folder / name) for name in names}, _RUN: json_hash(said)}


@dataclass(frozen=True)
class SavedResult:
    """A result folder, read back.

    Images may have gone since: `image_paths` has None in the place of each that is missing, so that a table or a page
    can still show the rest. If the folder of images has moved as a whole, `load` looks for it where it lay before as
    seen from the result, and takes any other place as `images`. Whether a file holds something else by now is told by
    `changed`, which has to read them all.

    Attributes:
        folder: the result folder.
        root: the folder of the images; it need not exist any more.
        assignments: N rows, see `FolderResult.assignments`. `path` is below `root`, or absolute for images that
            `cae update` added from elsewhere.
        clusters: a record a cluster: `id`, `name`, `gloss`, `size`, `nouns`, `captions`, `representatives` (paths as
            in the assignments). Look clusters up by `id`.
        run: settings, provenance, scores and what was skipped.
        edits: changes by hand that `edited` applies.

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
    edits: tuple[Edit, ...] = ()
    _unedited: SavedResult | None = None  # has what edits do not change

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> Self:
        """Read a folder that `write_result` wrote. Model and embeddings wait until they are asked for.

        Args:
            folder: the result folder.
            images: folder that the images lie in now, if they have moved.

        Raises:
            ResultError: no result, or one that is incomplete, damaged, or from another version.
            EditError: the edits beside it are damaged or from a newer version.
        """
        folder = Path(folder)
        tidy(folder)
        run = _read_json(folder, _RUN)
        version = run.get("format_version")
        if not is_version(version):
            raise ResultError(f"{folder} was written by an earlier version of cae; run `cae cluster` again")
        if version > FORMAT_VERSION:
            raise ResultError(
                f"the result in {folder} has format {version}, this version of cae reads up to {FORMAT_VERSION}; "
                "upgrade cae"
            )
        _require(folder, _ASSIGNMENTS)
        try:
            assignments = pq.read_table(folder / _ASSIGNMENTS)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(folder, _ASSIGNMENTS, error) from error
        clusters: Any = _read_json(folder, _CLUSTERS).get("clusters")
        _check_consistent(folder, assignments, clusters, run)
        _check_unchanged(folder, _ASSIGNMENTS, run)
        _warn_of_changes(folder, run)
        return cls(folder, _find_root(folder, run, images), assignments, clusters, run, load_edits(folder))

    @cached_property
    def edited(self) -> Self:
        """The result as people want it: with its edits applied, and none left to apply."""
        if not self.edits:
            return self
        view = self._edited
        return replace(self, assignments=view.assignments, clusters=view.clusters, edits=(), _unedited=self)

    @property
    def has_images(self) -> bool:
        """Whether anything is known of images: False for a result of embeddings without paths."""
        return self.run.get("rows_are") != "embeddings"

    @property
    def unmatched_edits(self) -> list[str]:
        """A line for each edit that `edited` leaves out because its images are gone or scattered."""
        return self._edited.unmatched if self.edits else []

    @cached_property
    def _edited(self) -> EditedResult:
        return apply_edits(self, self.edits)

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
        _require(self.folder, _EMBEDDINGS)
        try:
            tensors = load_file(self.folder / _EMBEDDINGS)
            embeddings = tensors["embeddings" if "embeddings" in tensors else "embedding"]
        except (SafetensorError, OSError, KeyError) as error:
            raise _damaged(self.folder, _EMBEDDINGS, error) from error
        if len(embeddings) != len(self.assignments):
            raise _damaged(self.folder, _EMBEDDINGS, f"{len(embeddings)} rows for {len(self.assignments)} pictures")
        if embeddings.ndim != 2 or embeddings.dtype != torch.float16 or not embeddings.isfinite().all():
            raise _damaged(self.folder, _EMBEDDINGS, f"{embeddings.dtype} {tuple(embeddings.shape)} in place of rows")
        _check_unchanged(self.folder, _EMBEDDINGS, self.run)
        return embeddings

    @cached_property
    def image_paths(self) -> list[Path | None]:
        """Where each of the N images lies now; None where there is no file any more.

        A result may come from anybody, and name any file. Only what is called like an image counts, or begins like
        one, and no path leads up, so that no other file is exported or linked.
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

    def present(self) -> list[tuple[dict[str, Any], Path]]:
        """The rows whose image is still there, as dicts, with its place."""
        rows = zip(self.assignments.to_pylist(), self.image_paths, strict=True)
        return [(row, place) for row, place in rows if place is not None]

    def changed(self) -> list[int]:
        """Rows whose file is still there but holds other bytes than those that were clustered. Reads every file."""
        here = [(row, place) for row, place in enumerate(self.image_paths) if place is not None]
        hashes = self.assignments["sha256"].to_pylist()
        found = content_hashes([place for _, place in here])
        return [row for (row, _), now in zip(here, found, strict=True) if now != hashes[row]]


def _is_below(path: str) -> bool:
    return "\0" not in path and ".." not in PurePath(path).parts


_TEXTS = pa.list_(pa.string())
_COLUMNS = {
    "path": pa.string(),
    "cluster": pa.int64(),
    "name": pa.string(),
    "confidence": pa.float32(),
    "similarity": pa.float32(),
    "runner_up": pa.int64(),
    "beta_image": pa.float32(),
    "beta_noun": pa.float32(),
    "beta_caption": pa.float32(),
    "top_nouns": _TEXTS,
    "top_caption": pa.string(),
    "sha256": pa.string(),
}
_MAY_BE_NULL = ("runner_up", "sha256")
_RECORD = {
    "id": int,
    "name": str,
    "gloss": str,
    "size": int,
    "nouns": list[str],
    "captions": list[str],
    "representatives": list[str],
}
_RUN_KINDS = {  # of those that it has
    "root": str,
    "root_from_here": str,
    "encoder": dict,
    "corpora": dict,
    "skipped": dict,
    "updates": list,
    "embeddings": list[str],
    "rows_are": str,
}


def _check_consistent(folder: Path, assignments: pa.Table, clusters: Any, run: dict[str, Any]) -> None:
    """Catch files that are not what they should be, or not of one and the same run."""
    missing = [name for name in _COLUMNS if name not in assignments.column_names]
    if missing:
        raise _damaged(folder, _ASSIGNMENTS, f"no column {', '.join(missing)}")
    for name, kind in _COLUMNS.items():
        column = assignments[name]
        if column.type != kind or (column.null_count and name not in _MAY_BE_NULL):
            raise _damaged(folder, _ASSIGNMENTS, f"column {name} holds something else than {kind}")
    if not isinstance(clusters, list) or not all(
        isinstance(record, dict) and set(_RECORD) <= set(record) for record in clusters
    ):
        raise _damaged(folder, _CLUSTERS, f"expected records with {', '.join(_RECORD)} under `clusters`")
    if not isinstance(run.get("root"), str):
        raise _damaged(folder, _RUN, "it does not say where the pictures are")
    try:
        name = _CLUSTERS
        for record in clusters:
            check_kinds(record, _RECORD)
            if not all(0 <= record[key] < 2**31 for key in ("id", "size")):
                raise ValueError(f"{record['id']} is no number, or {record['size']} no size of a cluster")
        if len({record["id"] for record in clusters}) < len(clusters):
            raise ValueError("two clusters have the same number")
        name = _RUN
        check_kinds(run, {key: kind for key, kind in _RUN_KINDS.items() if key in run})
        if run["format_version"] > 1:
            check_kinds(run, {"sha256": dict})
    except ValueError as error:
        raise _damaged(folder, name, error) from error
    if run.get("images") != len(assignments):
        raise _damaged(folder, _RUN, f"it speaks of {run.get('images')} pictures, {_ASSIGNMENTS} of {len(assignments)}")
    unknown = set(assignments["cluster"].unique().to_pylist()) - {record["id"] for record in clusters}
    if unknown:
        raise _damaged(folder, _CLUSTERS, f"no record of cluster {', '.join(map(str, sorted(unknown)))}")


def _check_unchanged(folder: Path, name: str, run: dict[str, Any]) -> None:
    """Refuse a file that is not the one that was written with `run.json`."""
    if run["format_version"] > 1 and content_hash(folder / name) != run["sha256"].get(name):
        raise _damaged(folder, name, f"its checksum is not the one in {_RUN}")


def _warn_of_changes(folder: Path, run: dict[str, Any]) -> None:
    """Tell of JSON that is not as it was written; people may have had reasons to change it."""
    if run["format_version"] == 1:
        return
    for name, sha256 in _checksums(folder, (_CLUSTERS,), run).items():
        if run["sha256"].get(name) != sha256:
            logger.warning("%s was changed or damaged since cae wrote it; what it says may be wrong", folder / name)


def _find_root(folder: Path, run: dict[str, Any], images: str | os.PathLike[str] | None) -> Path:
    """The folder of the images: as told, as recorded, or as far from the result as it was."""
    if images is not None:
        if not _there(Path(images).is_dir):
            raise ResultError(f"no such folder of pictures: {images}")
        return Path(images)
    recorded, beside = Path(run["root"]), folder / run.get("root_from_here", run["root"])
    return beside if _there(beside.is_dir) and not _there(recorded.is_dir) else recorded


def _there(look: Callable[[], bool]) -> bool:
    """What a look at a path finds; nothing where the path is too long or otherwise impossible."""
    try:
        return look()
    except OSError:
        return False


def _require(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise ResultError(f"no such folder: {folder}")
    if (folder / name).is_file():
        return
    if (folder / _RUN).is_file():
        raise ResultError(f"{folder} is incomplete: {name} is missing; run `cae cluster` with --out {folder}")
    # No hint at --out {folder}: it may be the folder of the images.
    raise ResultError(
        f"{folder} is no result of `cae cluster`: {name} is missing; give a folder that it wrote, as cae-result"
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    _require(folder, name)
    try:
        value = load_json(folder / name)
    except (ValueError, OSError) as error:
        raise _damaged(folder, name, error) from error
    if not isinstance(value, dict):
        raise _damaged(folder, name, "it holds no object")
    return value


def _damaged(folder: Path, name: str, why: object) -> ResultError:
    return ResultError(f"{folder / name} is damaged ({why}); run `cae cluster` again")
