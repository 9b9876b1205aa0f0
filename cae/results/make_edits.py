"""Edits from what people say: clusters are named by name or number, images by path; parts come from k-means."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import numpy as np

from cae.config import CAEConfig
from cae.kernels import nearest
from cae.method.kmeans import kmeans
from cae.results.edits import (
    N_ANCHORS,
    Anchors,
    Assigned,
    EditedView,
    EditError,
    Merge,
    Move,
    Pin,
    Rename,
    Rows,
    Split,
)
from cae.utils.files import absolute


def rename(result: Assigned, cluster: str | int, name: str) -> Rename:
    """Call a cluster something else.

    Args:
        result: the view that the edit changes: `SavedResult.edited`. The same for all functions here.
        cluster: name or number of the cluster.
        name: the new name.

    Raises:
        EditError: no such cluster, or the name is empty or another cluster's.
    """
    id = find_cluster(result, cluster)
    return Rename(anchors_of(result, id), check_name(result, name, [id]))


def merge(result: Assigned, clusters: Sequence[str | int], name: str | None = None) -> Merge:
    """Make several clusters one, by default under the first one's name.

    Raises:
        EditError: fewer than two clusters, no such cluster, or a name as in `rename`.
    """
    ids = list(dict.fromkeys(find_cluster(result, cluster) for cluster in clusters))
    if len(ids) < 2:
        raise EditError("merging takes at least two groups; name another")
    anchors = tuple(anchors_of(result, id) for id in ids)
    return Merge(anchors, anchors[0].name if name is None else check_name(result, name, ids))


def split(result: Assigned, cluster: str | int, into: int) -> Split:
    """Take a cluster apart by what its images look like.

    Raises:
        EditError: no such cluster, or one with fewer different images than parts.
    """
    id = find_cluster(result, cluster)
    return Split(anchors_of(result, id), split_into(result, id, into))


def pin(result: Assigned, cluster: str | int) -> Pin:
    """Keep the images and the name of a cluster, whatever the next fit finds.

    Raises:
        EditError: no such cluster.
    """
    return Pin(anchors_of(result, find_cluster(result, cluster), every=True))


def move(result: Assigned, paths: Sequence[str | os.PathLike[str]], to: str | int) -> Move:
    """Put single images into another cluster.

    Raises:
        EditError: no such image or cluster.
    """
    images = find_images(result, [os.fspath(path) for path in paths])
    return Move(anchors_of(result, find_cluster(result, to)), images)


def anchors_of(result: Assigned | EditedView, id: int, *, every: bool = False) -> Anchors:
    """The anchors by which an edit recognises a cluster.

    Args:
        result: what the edit changes: `SavedResult.edited`, or a view that edits were applied to.
        id: id of the cluster.
        every: whether every image is listed, as for a pin.

    Raises:
        EditError: none of its images has a hash.
    """
    view = _view(result)
    return view.anchors(view.most_typical(view.members(id)), view.clusters[id]["name"], None if every else N_ANCHORS)


def pins_of(view: EditedView, rows: Rows) -> list[Pin]:
    """Edits that keep some pictures together, those of each cluster under its name, with those pinned there before.

    Raises:
        EditError: none of a cluster's has a hash.
    """
    pins = []
    for id in dict.fromkeys(view.labels[rows].tolist()):
        # Two sets that are pinned apart from each other would be two clusters from then on.
        before = view.rows(view.pinned.get(id, ()))
        together = np.concatenate([rows, before])
        pins.append(Pin(view.anchors(together[view.labels[together] == id], view.clusters[id]["name"], None)))
    return pins


def split_into(result: Assigned | EditedView, id: int, n: int) -> tuple[Anchors, ...]:
    """Parts of a cluster by k-means on the image embeddings, the largest first, each called after a noun of its own.

    Args:
        result: what the edit changes, as in `anchors_of`.
        id: id of the cluster.
        n: number of parts, at least 2.

    Raises:
        EditError: fewer different images than parts.
    """
    view = _view(result)
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


def _view(result: Assigned | EditedView) -> EditedView:
    return result if isinstance(result, EditedView) else EditedView(result)


def find_cluster(result: Assigned, cluster: str | int) -> int:
    """The id of the cluster that a person means by its name or number.

    Raises:
        EditError: there is none, or several are called so.
    """
    names = {record["id"]: record["name"] for record in result.clusters}
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
    near = difflib.get_close_matches(text, names.values(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(names.values())}"
    raise EditError(f"no group is called {text!r}; {hint}")


def find_images(result: Assigned, paths: Sequence[str]) -> tuple[str, ...]:
    """The hashes of images named by their path, in the result or on disk.

    Raises:
        EditError: a path is not in the result, or its image has no hash.
    """
    rows = result.assignments.select(["path", "sha256"]).to_pylist()
    hash_of = {row["path"]: row["sha256"] for row in rows}
    root = absolute(result.root)
    hash_of |= {os.fspath(root / path): sha256 for path, sha256 in hash_of.items()}
    found = [hash_of.get(path) or hash_of.get(os.fspath(absolute(path))) for path in paths]
    unknown = [path for path, sha256 in zip(paths, found, strict=True) if sha256 is None]
    if unknown:
        raise EditError(f"not in the result: {', '.join(unknown)}; paths are those of assignments.csv, or on disk")
    return tuple(sha256 for sha256 in found if sha256 is not None)


def check_name(result: Assigned, name: str, ids: Sequence[int]) -> str:
    """A name for some clusters, unless it is empty or another cluster's.

    Raises:
        EditError: it is.
    """
    name = name.strip()
    if not name:
        raise EditError("a name cannot be empty")
    taken = {record["name"] for record in result.clusters if record["id"] not in ids}
    if name in taken:
        raise EditError(f"another group is called {name!r} already; merge the two, or choose another name")
    return name
