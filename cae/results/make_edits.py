"""Edits of a result as it is now, for the command line, for Python and for the page of `cae open` alike.

Clusters are meant by name or number (id), images by their row of the assignments, which `find_images` tells of paths.
`view` is what the edit will be applied to: `SavedResult.view`, or `Editor.view`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import numpy as np

from cae.config import CAEConfig
from cae.kernels import nearest
from cae.method.kmeans import kmeans
from cae.results.edits import N_ANCHORS, Anchors, EditedView, EditError, Merge, Move, Pin, Rename, Rows, Split
from cae.utils.files import absolute
from cae.utils.names import is_utf_8
from cae.utils.words import counted, few, is_one_line

_NAMED = 8
"""How many groups, or pictures, an error names."""


def rename(view: EditedView, cluster: str | int, name: str) -> Rename:
    """Call a cluster something else.

    Args:
        view: what the edit will be applied to.
        cluster: name or number of the cluster.
        name: the new name.

    Raises:
        EditError: no such cluster, or a name that is empty, not in one line, or another cluster's.
    """
    id = find_cluster(view, cluster)
    return Rename(anchors_of(view, id), _check_name(view, name, [id]))


def merge(view: EditedView, clusters: Sequence[str | int], name: str | None = None) -> Merge:
    """Make several clusters one, by default under the first one's name.

    Raises:
        EditError: fewer than two clusters, no such cluster, or a name as in `rename`.
    """
    ids = list(dict.fromkeys(find_cluster(view, cluster) for cluster in clusters))
    if len(ids) < 2:
        raise EditError("merging takes at least two groups: give another")
    anchors = tuple(anchors_of(view, id) for id in ids)
    return Merge(anchors, anchors[0].name if name is None else _check_name(view, name, ids))


def split(view: EditedView, cluster: str | int, into: int) -> Split:
    """Take a cluster apart by what its images look like.

    Raises:
        EditError: no such cluster, or one with fewer different images than parts.
    """
    id = find_cluster(view, cluster)
    return Split(anchors_of(view, id), split_into(view, id, into))


def pin(view: EditedView, clusters: Sequence[str | int]) -> list[Pin]:
    """Keep the images and the names of clusters, whatever the next fit finds.

    Raises:
        EditError: no cluster, or no such one.
    """
    if not clusters:
        raise EditError("pinning takes at least one group: give one")
    return [Pin(anchors_of(view, find_cluster(view, cluster), every=True)) for cluster in clusters]


def pin_images(view: EditedView, rows: Sequence[int]) -> list[Pin]:
    """Keep images together, those of each cluster under its name, with those pinned there before.

    Raises:
        EditError: no image, or no such one; or none of a cluster's has a hash.
    """
    chosen, pins = _check_rows(view, rows), []
    for id in dict.fromkeys(view.labels[chosen].tolist()):
        # Two sets that are pinned apart from each other would be two clusters from then on.
        before = view.rows(view.pinned.get(id, ()))
        together = np.concatenate([chosen, before])
        pins.append(Pin(view.anchors(together[view.labels[together] == id], view.clusters[id]["name"], None)))
    return pins


def move(view: EditedView, rows: Sequence[int], to: str | int) -> Move:
    """Put single images into another cluster.

    Raises:
        EditError: no image, or no such one; or no such cluster.
    """
    pictures = view.anchors(_check_rows(view, rows), "those chosen", None).pictures
    return Move(anchors_of(view, find_cluster(view, to)), pictures)


def anchors_of(view: EditedView, id: int, *, every: bool = False) -> Anchors:
    """The anchors by which an edit recognises a cluster.

    Args:
        view: what the edit will be applied to.
        id: id of the cluster.
        every: whether every image is listed, as for a pin.

    Raises:
        EditError: none of its images has a hash.
    """
    return view.anchors(view.most_typical(view.members(id)), view.clusters[id]["name"], None if every else N_ANCHORS)


def split_into(view: EditedView, id: int, n: int) -> tuple[Anchors, ...]:
    """Parts of a cluster by k-means on the image embeddings, the largest first, each called after a noun of its own.

    Args:
        view: what the edit will be applied to.
        id: id of the cluster.
        n: number of parts, at least 2.

    Raises:
        EditError: fewer different images than parts.
    """
    members = view.members(id)
    x = view.x[members]
    different = len(x.unique(dim=0))
    if different < n:
        name = view.clusters[id]["name"]
        raise EditError(f"{name} cannot be split in {n}: it has too few different pictures ({different})")
    labels = nearest(
        x, kmeans(x, n, spherical=True, n_init=CAEConfig.n_init, max_iter=CAEConfig.kmeans_iter, seed=0)
    ).labels.numpy()
    parts = [members[labels == i] for i in range(n) if (labels == i).any()]
    parts.sort(key=len, reverse=True)
    return tuple(
        view.anchors(view.most_typical(part), name)
        for part, name in zip(parts, view.part_names(id, parts), strict=True)
    )


def find_cluster(view: EditedView, cluster: str | int) -> int:
    """The id of the cluster that is meant by its name or number.

    Raises:
        EditError: there is none, or several are called so.
    """
    names = view.names()
    if not isinstance(cluster, str) and cluster in names:
        return int(cluster)
    text = str(cluster)
    called = [id for id, name in names.items() if name == text]
    if len(called) > 1:
        raise EditError(f"{len(called)} groups are called {text!r}; say which by number: {', '.join(map(str, called))}")
    if called:
        return called[0]
    if text.isdecimal() and int(text) in names:
        return int(text)
    if not isinstance(cluster, str) or text.isdecimal():
        raise EditError(f"there is no group {cluster}; {_listed([f'{id} ({name})' for id, name in names.items()])}")
    near = difflib.get_close_matches(text, names.values())
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _listed(list(names.values()))
    raise EditError(f"no group is called {text!r}; {hint}")


def _listed(groups: Sequence[str]) -> str:
    """What groups there are, the first of them by name."""
    there = "they are" if len(groups) <= _NAMED else f"there are {len(groups):,}, as `cae edit RESULT` lists them:"
    return f"{there} {few(groups, _NAMED)}"


def find_images(view: EditedView, paths: Sequence[str | os.PathLike[str]]) -> list[int]:
    """The rows of images named by their path, in the result or on disk.

    Raises:
        EditError: a path is not in the result.
    """
    rows = {path: row for row, path in enumerate(view.table["path"].to_pylist())}
    root = absolute(view.root)
    rows |= {os.fspath(root / path): row for path, row in rows.items()}
    asked = [os.fspath(path) for path in paths]
    found = [rows.get(path, rows.get(os.fspath(absolute(path)))) for path in asked]
    unknown = [path for path, row in zip(asked, found, strict=True) if row is None]
    if unknown:
        which = f"{counted(len(unknown), 'picture')} not in the result: {few(unknown, _NAMED)}"
        raise EditError(f"{which}; paths are those of assignments.csv, or on disk")
    return [row for row in found if row is not None]


def _check_rows(view: EditedView, rows: Sequence[int]) -> Rows:
    """Rows of images, each once.

    Raises:
        EditError: there is none, or no such one.
    """
    if not rows:
        raise EditError("no picture is chosen: choose one or more")
    n = len(view.labels)
    if outside := [row for row in rows if not 0 <= row < n]:
        raise EditError(f"there is no picture {outside[0]}: the result has {n}")
    return np.array(list(dict.fromkeys(rows)), dtype=np.int64)


def _check_name(view: EditedView, name: str, ids: Sequence[int]) -> str:
    """A name for some clusters.

    Raises:
        EditError: it shows nothing, is no valid text, not in one line, or another cluster's.
    """
    name = name.strip()
    if not any(character.isprintable() and not character.isspace() for character in name):
        raise EditError("a name cannot be empty")
    if not is_utf_8(name):  # as a terminal may hand it over; no file could hold it
        raise EditError(f"the name {name!r} holds bytes that are no UTF-8: type it anew")
    if not is_one_line(name):
        raise EditError(f"the name {name!r} holds a line break or control characters: type it anew without")
    if name in {taken for id, taken in view.names().items() if id not in ids}:
        raise EditError(f"another group is called {name!r} already; merge the two, or choose another name")
    return name
