"""Images of a result that are there more than once: the same bytes, or the same image saved in another way.

*Exact* copies have the same SHA-256, those of the result as well as those that the files have now. *Near* copies are
first looked for among each image's nearest neighbours by the stored embeddings, which few changes move far. Images that
are near but show something else are excluded by a perceptual hash of 64 bits (pHash, from ImageHash), in `NEAR` of
which two images may differ. Since a margin cut off changes many bits, each is also compared with the other's middle.
Every image of a group is a copy of its best one, the largest, and not merely of another copy. Nothing is deleted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import normalize

from cae.data.dataset import size_and_time
from cae.data.images import ImageError, image_size, read_image, shown_path
from cae.kernels import nearest
from cae.results.defaults import NEAR
from cae.results.layout import ResultError
from cae.results.representatives import original_first
from cae.results.saved import SavedResult
from cae.results.writing import write_csv
from cae.utils.checksums import content_hashes
from cae.utils.files import replacing
from cae.utils.progress import Reporter, silent

MOST_BITS = 32
"""Half of the bits: the hashes of two unrelated images differ by as many on average."""
NEIGHBOURS = 10
"""Nearest neighbours of each image that are compared with it. Larger groups are connected through several images."""
MARGINS = (0.0, 0.05, 0.1)
"""Shares of width and height that are left out at each side, with a hash for each."""
_HASHED_AT = 64
"""Side that images are decoded for. Four times as much is the longest side that is hashed: the hash uses 32 by 32."""
_SMALL = 50_000
"""Mean bytes per file up to which decoding without threads is faster."""

_COLUMNS = pa.schema(
    {
        "group": pa.int64(),
        "kind": pa.string(),
        "best": pa.bool_(),
        "row": pa.int64(),
        "path": pa.string(),
        "file": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "distance": pa.int64(),
    }
)

Hashes: TypeAlias = dict[int, NDArray[np.bool_]]
"""(3, 64) of an image, one row for each of `MARGINS`."""


@dataclass(frozen=True)
class Copy:
    """An image of a group of duplicates.

    Attributes:
        row: its row of the assignments.
        path: its path as in the assignments.
        file: its place on disk.
        width: width in pixels.
        height: height in pixels.
        bytes: size of the file.
        sha256: hash of the file's bytes; None if it is not known.
        distance: bits in which its perceptual hash differs from that of the best copy; 0 for an exact copy.
    """

    row: int
    path: str
    file: Path
    width: int
    height: int
    bytes: int
    sha256: str | None
    distance: int = 0


@dataclass(frozen=True)
class Group:
    """Copies of one image, at least two.

    Attributes:
        kind: `exact` if all files hold the same bytes.
        copies: best first: most pixels, then most bytes, files before links, then the shorter path.
    """

    kind: Literal["exact", "near"]
    copies: list[Copy]


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        groups: largest first.
        n_images: images that were looked at.
        missing: paths of images that are gone, and so are in no group.
    """

    groups: list[Group]
    n_images: int
    missing: list[str]

    @property
    def rows(self) -> list[int]:
        """Rows of all copies but the best of each group: what may be left out."""
        return sorted(copy.row for group in self.groups for copy in group.copies[1:])

    def table(self) -> pa.Table:
        """One row per copy: `group`, `kind`, `best`, and the fields of `Copy`."""
        records = [
            {
                "group": i,
                "kind": group.kind,
                "best": copy is group.copies[0],
                **asdict(copy),
                "file": shown_path(copy.file),
            }
            for i, group in enumerate(self.groups)
            for copy in group.copies
        ]
        return pa.Table.from_pylist(records, _COLUMNS)

    def document(self) -> dict[str, Any]:
        """The same as nested lists, for JSON."""
        return {"groups": [asdict(g) for g in self.groups], "pictures": self.n_images, "missing": self.missing}


def find_duplicates(result: SavedResult, *, near: int | None = NEAR, reporter: Reporter = silent) -> Duplicates:
    """Find the images that are there more than once.

    Args:
        result: a result that knows its images.
        near: bits of 64 by which the perceptual hashes of near copies may differ, 0 to `MOST_BITS`; None looks for
            exact copies alone, and reads hardly any file.
        reporter: makes the progress callback of each step.

    Raises:
        ResultError: a result of embeddings without images, or without embeddings.
        ValueError: `near` is out of range.

    Examples:
        >>> import shutil
        >>> _ = shutil.copy("photos/red/1.png", "photos/red/0.png")  # since it was clustered
        >>> find_duplicates(SavedResult.load("cae-result"), near=None).groups
        []
    """
    if near is not None and not 0 <= near <= MOST_BITS:
        raise ValueError(f"near (--near) must be 0 to {MOST_BITS} bits of the perceptual hash, got {near}")
    if not result.has_images:
        raise ResultError(
            f"{result.folder} was made from embeddings that name no pictures: there are no files to compare; cluster a "
            "folder of pictures, or embeddings with a column `path`"
        )
    places = {row: place for row, place in enumerate(result.image_paths) if place is not None}
    sha256 = _hashes_now(result, places, reporter)
    by_content: dict[Any, list[int]] = {}
    for row in places:
        by_content.setdefault(sha256.get(row) or row, []).append(row)
    sets = list(by_content.values())
    bits: Hashes = {}
    if near is not None:
        sets, bits = _near_sets(result, places, sets, near, reporter)
    paths = result.assignments["path"].to_pylist()
    groups: list[Group] = []
    for rows in sets:
        if len(rows) > 1:
            copies = [copy for row in rows if (copy := _copy(row, paths[row], places[row], sha256.get(row)))]
            groups += _around_the_best(copies, bits, near)
    groups.sort(key=lambda group: (-len(group.copies), group.copies[0].path))
    return Duplicates(groups, len(places), [path for row, path in enumerate(paths) if row not in places])


def check_list_name(out: Path) -> None:
    """Check early whether `write_duplicates` can write a file of this name.

    Raises:
        ValueError: another ending.
    """
    if out.suffix.lower() not in _WRITERS:
        raise ValueError(f"cannot write {out}: end its name (--out) in {', '.join(_WRITERS)}")


def write_duplicates(found: Duplicates, out: Path) -> None:
    """Write the list of copies, whole or not at all: a table as `.csv` or `.parquet`, or nested as `.json`.

    Raises:
        ValueError: another ending.
        OSError: the file cannot be written.

    Examples:
        >>> write_duplicates(find_duplicates(SavedResult.load("cae-result")), Path("copies.csv"))
        >>> Path("copies.csv").read_text()[:20]
        '"group","kind","best'
    """
    check_list_name(out)
    try:
        with replacing(out) as target:
            _WRITERS[out.suffix.lower()](found, target)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}; choose another place for the list") from error


def _write_json(found: Duplicates, path: Path) -> None:
    # In ASCII: a file name may be any bytes.
    path.write_text(json.dumps(found.document(), default=str, indent=2) + "\n", encoding="ascii")


_WRITERS: dict[str, Callable[[Duplicates, Path], None]] = {
    ".csv": lambda found, path: write_csv(found.table(), path),
    ".parquet": lambda found, path: pq.write_table(found.table(), path),
    ".json": _write_json,
}


def _hashes_now(result: SavedResult, places: dict[int, Path], reporter: Reporter) -> dict[int, str]:
    """The hash of each file's content: the recorded one, or, where that would make it a copy, the present one."""
    known: list[str | None] = result.assignments["sha256"].to_pylist()
    often = Counter(known[row] for row in places)
    # A file may have changed since: it must not count as a copy for what it was before.
    doubtful = [row for row in places if known[row] is None or often[known[row]] > 1]
    now = content_hashes([places[row] for row in doubtful], reporter("hashes") if doubtful else None)
    found = {**{row: known[row] for row in places}, **dict(zip(doubtful, now, strict=True))}
    return {row: value for row, value in found.items() if value is not None}


def _near_sets(
    result: SavedResult, places: dict[int, Path], exact: list[list[int]], near: int, reporter: Reporter
) -> tuple[list[list[int]], Hashes]:
    """Sets of rows that near copies join, and the perceptual hashes of those that were looked at.

    Args:
        result: the result.
        places: files by row.
        exact: sets of rows with the same content.
        near: bits that may differ.
        reporter: makes the progress callback.
    """
    rows = [members[0] for members in exact]
    pairs = _candidates(result, rows)
    wanted = np.unique(pairs)
    bits = _perceptual_hashes({int(i): places[rows[i]] for i in wanted}, reporter)
    table = np.zeros((len(rows), len(MARGINS), 64), dtype=bool)
    for i, value in bits.items():
        table[i] = value
    pairs = pairs[np.isin(pairs, list(bits)).all(axis=1)]
    a, b = pairs[_distance(table[pairs[:, 0]], table[pairs[:, 1]]) <= near].T
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(len(rows), len(rows)))
    _, component = connected_components(graph, directed=False)
    joined: dict[int, list[int]] = {}
    for i, label in enumerate(component.tolist()):
        joined.setdefault(label, []).extend(exact[i])
    return list(joined.values()), {row: bits[i] for i in bits for row in exact[i]}


def _candidates(result: SavedResult, rows: Sequence[int]) -> NDArray[np.int64]:
    """(P, 2) positions in `rows` of images that lie next to each other by their embeddings."""
    if len(rows) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    x = normalize(result.embeddings[torch.tensor(rows)].float(), dim=1)
    found = nearest(x, x, k=min(NEIGHBOURS + 1, len(rows)))
    labels = found.labels.numpy()
    first = np.repeat(np.arange(len(rows)), labels.shape[1])
    pairs = np.stack([first, labels.ravel()], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _perceptual_hashes(files: dict[int, Path], reporter: Reporter) -> Hashes:
    """The perceptual hashes of each file that can be read."""
    report, found = reporter("pictures"), {}
    with ThreadPoolExecutor() as pool:
        # Decoding releases the interpreter's lock, but for small files switching threads costs more than it saves.
        spread = sum(size_and_time(file)[0] for file in files.values()) > _SMALL * len(files)
        hashes = (pool.map if spread else map)(_perceptual_hash, files.values())
        for done, (key, bits) in enumerate(zip(files, hashes, strict=True), 1):
            if bits is not None:
                found[key] = bits
            report(done, len(files))
    return found


def _perceptual_hash(file: Path) -> NDArray[np.bool_] | None:
    from imagehash import phash

    try:
        image = read_image(file, _HASHED_AT).convert("L")
    except ImageError:
        return None
    image.thumbnail((4 * _HASHED_AT, 4 * _HASHED_AT))
    w, h = image.size
    middles = (image.crop((round(m * w), round(m * h), round(w - m * w), round(h - m * h))) for m in MARGINS)
    return np.stack([phash(middle).hash.ravel() for middle in middles])


def _distance(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Bits (...) in which hashes (..., 3, 64) differ: the least between one whole image and the other's middles."""
    whole_a, whole_b = a[..., :1, :], b[..., :1, :]
    return np.minimum((whole_a != b).sum(axis=-1).min(axis=-1), (whole_b != a).sum(axis=-1).min(axis=-1))


def _copy(row: int, path: str, file: Path, sha256: str | None) -> Copy | None:
    """What is known of a file; None if it cannot be read any more."""
    try:
        width, height = image_size(file)
        return Copy(row, path, file, width, height, file.stat().st_size, sha256)
    except (ImageError, OSError):
        return None


def _around_the_best(copies: list[Copy], bits: Hashes, near: int | None) -> list[Group]:
    """Groups in which every image is a copy of the best one. An image that only copies another copy is left over."""
    left = sorted(copies, key=lambda c: (-c.width * c.height, -c.bytes, c.file.is_symlink(), original_first(c.path)))
    groups = []
    while len(left) > 1:
        best, rest = left[0], left[1:]
        group, left = [best], []
        for copy in rest:
            exact = copy.sha256 is not None and copy.sha256 == best.sha256
            distance = 0 if exact else int(_distance(bits[copy.row], bits[best.row]))
            if exact or (near is not None and distance <= near):
                group.append(replace(copy, distance=distance))
            else:
                left.append(copy)
        if len(group) > 1:
            contents = {copy.sha256 for copy in group}
            groups.append(Group("exact" if len(contents) == 1 else "near", group))
    return groups
