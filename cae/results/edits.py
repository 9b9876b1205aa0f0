"""What people change by hand in a result: `edits.json` beside it, applied to every view of it.

The files of a fit stay as the fit wrote them. Edits are a list, applied in order each time the result is looked at
(`SavedResult.edited`); so they outlive the next `cae cluster` into the same folder, on the same pictures or on more.

Pictures are known by the SHA-256 of their bytes. A cluster has no number that a new fit would keep, so it is known by
pictures in it, its *anchors*: it is the cluster that now holds more than half of those anchors that are still there.
An edit whose anchors are all gone, or spread so that no cluster holds more than half, is not applied; it is reported,
kept, and tried again at the next look.

rename  The cluster shows `name`, and no gloss.
        After a new fit: so does the cluster that its anchors went to.
merge   The clusters become one, called `name`.
        After a new fit: so do the clusters that their anchors went to, if they are still apart; one whose anchors are
        all gone is left out.
split   The cluster falls into parts: a picture goes to the part that lists it, else to the part whose listed pictures
        have the most similar mean image embedding.
        After a new fit: the same for the cluster that its anchors went to.
pin     Nothing changes.
        After a new fit: all its pictures are together under its name, in the cluster that holds more than half of them
        or else in one of their own. Pictures that the fit adds to that cluster stay.
move    The pictures are in that cluster.
        After a new fit: they are in the cluster that its anchors went to.

A renamed, merged or pinned cluster keeps its `id`, or the first one's; the first part of a split keeps the `id`, the
others get new ones; clusters left without pictures are gone. `confidence`, `similarity` and the weights still speak of
the fit; `runner_up` follows merges, and is null where it is no other cluster any more.

The file, which other programs may write, too:

    {"format_version": 1,
     "edits": [{"edit": "rename", "cluster": C, "name": "boats"},
               {"edit": "merge", "clusters": [C, C, …], "name": "boats"},
               {"edit": "split", "cluster": C, "parts": [C, C, …]},
               {"edit": "pin", "cluster": C},
               {"edit": "move", "cluster": C, "pictures": ["SHA-256", …]}]}

where C is `{"name": "harbor", "pictures": ["SHA-256", …]}`: a cluster's name when the edit was made, which messages
show, and its anchors. For a part, `name` is what it will be called; for a pin, `pictures` are all its pictures.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import nearest
from cae.method.kmeans import kmeans
from cae.method.naming import N_REPRESENTATIVES, TEXTS_PER_CLUSTER, assign_names, typicality
from cae.utils.checksums import load_json
from cae.utils.files import write_json
from cae.utils.words import counted

FORMAT_VERSION = 1
EDITS_FILE = "edits.json"
N_ANCHORS = 25
"""Pictures by which an edit made here knows a cluster again: those most like its mean."""

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Assigned(Protocol):
    """The part of a `SavedResult` that edits read; see there."""

    @property
    def root(self) -> Path:
        """The folder of the images."""

    @property
    def assignments(self) -> pa.Table:
        """One row per image."""

    @property
    def clusters(self) -> list[dict[str, Any]]:
        """One record per cluster."""

    @property
    def embeddings(self) -> Tensor:
        """(N, D) image embeddings."""


class EditError(ValueError):
    """Edits cannot be made or read; the message says why and what to do."""


@dataclass(frozen=True)
class Anchors:
    """A cluster as edits know it.

    Attributes:
        name: name of the cluster when the edit was made.
        pictures: hashes of pictures in it.
    """

    name: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Rename:
    """Call a cluster `name`."""

    cluster: Anchors
    name: str

    def __str__(self) -> str:
        return f"rename {self.cluster.name} to {self.name}"

    def apply(self, view: _View) -> None:
        """Give the cluster its new name, and drop its gloss."""
        view.rename(view.find(self.cluster), self.name)


@dataclass(frozen=True)
class Merge:
    """Make several clusters one, called `name`."""

    clusters: tuple[Anchors, ...]
    name: str

    def __str__(self) -> str:
        return f"merge {' and '.join(cluster.name for cluster in self.clusters)} as {self.name}"

    def apply(self, view: _View) -> None:
        """Join the clusters under the first one's id, and name them."""
        there = [cluster for cluster in self.clusters if len(view.rows(cluster.pictures))] or self.clusters
        first, *others = dict.fromkeys(view.find(cluster) for cluster in there)
        for other in others:
            view.absorb(first, other)
        view.rename(first, self.name)


@dataclass(frozen=True)
class Split:
    """Take a cluster apart, around the pictures of each part."""

    cluster: Anchors
    parts: tuple[Anchors, ...]

    def __str__(self) -> str:
        return f"split {self.cluster.name} into {' and '.join(part.name for part in self.parts)}"

    def apply(self, view: _View) -> None:
        """Put each image into the part whose listed images are most like it."""
        cluster = view.find(self.cluster)
        listed = [(part.name, rows) for part in self.parts if len(rows := view.rows(part.pictures))]
        if len(listed) < 2:
            raise _UnmatchedError("the pictures that tell its parts from each other are gone")
        members = view.members(cluster)
        prototypes = normalize(torch.stack([view.x[rows].mean(dim=0) for _, rows in listed]), dim=1)
        parts = nearest(view.x[members], prototypes).labels.numpy()
        for i, (_, rows) in enumerate(listed):
            parts[np.isin(members, rows)] = i
        for i, (name, _) in enumerate(listed):
            part = cluster if i == 0 else view.new_id()
            view.put(members[parts == i], part)
            view.describe(part, name)


@dataclass(frozen=True)
class Pin:
    """Keep the pictures that a cluster has, and its name, through any new fit."""

    cluster: Anchors

    def __str__(self) -> str:
        return f"pin {self.cluster.name}"

    def apply(self, view: _View) -> None:
        """Put all its images together, in their cluster or in one of their own."""
        rows, name = view.rows(self.cluster.pictures), self.cluster.name
        if not len(rows):
            raise _UnmatchedError("its pictures are gone")
        try:
            cluster = view.find(self.cluster)
        except _UnmatchedError:
            cluster = view.new_id()
        if not set(self.cluster.pictures) & view.pinned.get(cluster, set(self.cluster.pictures)):
            cluster = view.new_id()  # another pinned cluster lives there
        view.pinned[cluster] = set(self.cluster.pictures)
        view.put(rows, cluster)
        if cluster in view.clusters:
            view.rename(cluster, name)
        else:
            view.describe(cluster, name)


@dataclass(frozen=True)
class Move:
    """Put single pictures into a cluster."""

    cluster: Anchors
    pictures: tuple[str, ...]

    def __str__(self) -> str:
        return f"move {counted(len(self.pictures), 'picture')} to {self.cluster.name}"

    def apply(self, view: _View) -> None:
        """Put the images into the cluster."""
        cluster, rows = view.find(self.cluster), view.rows(self.pictures)
        if not len(rows):
            raise _UnmatchedError("the pictures are gone")
        view.put(rows, cluster)


Edit = Rename | Merge | Split | Pin | Move
_KINDS: dict[str, type[Edit]] = {"rename": Rename, "merge": Merge, "split": Split, "pin": Pin, "move": Move}


class EditedResult(NamedTuple):
    """A result as its edits show it.

    Attributes:
        assignments: the assignments, with other `cluster`, `name` and `runner_up`.
        clusters: a record a cluster, without those that no picture is in.
        unmatched: a line for each edit that could not be applied, with the reason.
    """

    assignments: pa.Table
    clusters: list[dict[str, Any]]
    unmatched: list[str]


def apply_edits(result: Assigned, edits: Iterable[Edit]) -> EditedResult:
    """Apply edits in order; see the module for what each means.

    Args:
        result: the result as the fit left it, or already edited.
        edits: edits from `load_edits`, or just made.
    """
    view, unmatched = _View(result), []
    for edit in edits:
        try:
            edit.apply(view)
        except _UnmatchedError as reason:
            unmatched.append(f"{edit}: {reason}")
    return EditedResult(view.assignments(), view.records(), unmatched)


def load_edits(folder: Path) -> tuple[Edit, ...]:
    """The edits beside a result; none without the file.

    Raises:
        EditError: damaged, or from a newer version.
    """
    path = folder / EDITS_FILE
    if not path.exists():
        return ()
    try:
        document = load_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("format_version"), int):
            raise ValueError("it has no format_version")
        if document["format_version"] > FORMAT_VERSION:
            raise EditError(f"{path} has format {document['format_version']}, newer than this cae reads; upgrade cae")
        return tuple(_read_edit(record) for record in document["edits"])
    except EditError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise EditError(f"{path} cannot be read ({error!r}); repair it, or remove it to go without edits") from error


def save_edits(edits: Sequence[Edit], folder: Path) -> None:
    """Write the edits beside a result, whole or not at all."""
    kinds = {kind: name for name, kind in _KINDS.items()}
    records = [{"edit": kinds[type(edit)], **asdict(edit)} for edit in edits]
    write_json({"format_version": FORMAT_VERSION, "edits": records}, folder / EDITS_FILE)


def anchors_of(result: Assigned, id: int, *, every: bool = False) -> Anchors:
    """How a further edit knows a cluster.

    Args:
        result: the view that the edit changes: `SavedResult.edited`.
        id: id of the cluster.
        every: list every picture, for a pin.

    Raises:
        EditError: none of its pictures has a hash.
    """
    view = _View(result)
    return view.anchors(view.most_typical(view.members(id)), view.clusters[id]["name"], None if every else N_ANCHORS)


def split_into(result: Assigned, id: int, n: int) -> tuple[Anchors, ...]:
    """Parts of a cluster by k-means on the image embeddings, the largest first, each called after a noun of its own.

    Args:
        result: the view that the edit changes: `SavedResult.edited`.
        id: id of the cluster.
        n: number of parts, at least 2.

    Raises:
        EditError: fewer different pictures than parts.
    """
    view = _View(result)
    members = view.members(id)
    x = view.x[members]
    different = len(x.unique(dim=0))
    if different < n:
        name = view.clusters[id]["name"]
        raise EditError(f"{name} cannot be split in {n}: it has too few different pictures ({different})")
    labels = nearest(x, kmeans(x, n, spherical=True, n_init=20, max_iter=300, seed=0)).labels.numpy()
    parts = [members[labels == i] for i in range(n) if (labels == i).any()]
    parts.sort(key=len, reverse=True)
    return tuple(
        view.anchors(view.most_typical(part), name)
        for part, name in zip(parts, view.part_names(id, parts), strict=True)
    )


def find_cluster(result: Assigned, text: str) -> int:
    """The id of the cluster that a person means by its name or number.

    Raises:
        EditError: there is none, or several are called so.
    """
    names = {record["id"]: record["name"] for record in result.clusters}
    called = [id for id, name in names.items() if name == text]
    if len(called) > 1:
        raise EditError(
            f"{len(called)} clusters are called {text!r}; say which by number: {', '.join(map(str, called))}"
        )
    if called:
        return called[0]
    if text.isdecimal() and int(text) in names:
        return int(text)
    near = difflib.get_close_matches(text, names.values(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(names.values())}"
    raise EditError(f"no cluster is called {text!r}; {hint}")


def find_images(result: Assigned, paths: Sequence[str]) -> tuple[str, ...]:
    """The hashes of pictures named by their path, in the result or on disk.

    Raises:
        EditError: a path is not in the result, or its picture has no hash.
    """
    rows = result.assignments.select(["path", "sha256"]).to_pylist()
    hash_of = {row["path"]: row["sha256"] for row in rows}
    root = Path(os.path.abspath(result.root))  # noqa: PTH100 (keeps links as they are)
    hash_of |= {os.fspath(root / path): sha256 for path, sha256 in hash_of.items()}
    found = [hash_of.get(path) or hash_of.get(os.path.abspath(path)) for path in paths]  # noqa: PTH100
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
    taken = {record["name"]: record["id"] for record in result.clusters if record["id"] not in ids}
    if name in taken:
        raise EditError(f"cluster {taken[name]} is called {name!r} already; merge the two, or choose another name")
    return name


class _UnmatchedError(Exception):
    """An edit speaks of pictures or clusters that are no longer there; the message says which."""


class _View:
    """A result while edits are applied to it."""

    def __init__(self, result: Assigned) -> None:
        self.table = result.assignments
        self.labels: Rows = self.table["cluster"].to_numpy().copy()
        self.clusters = {record["id"]: dict(record) for record in result.clusters}
        self.x = normalize(result.embeddings.float(), dim=1)
        self.pinned: dict[int, set[str]] = {}
        self._merged: dict[int, int] = {}
        self._changed: set[int] = set()
        self._next_id = max(self.clusters, default=-1) + 1
        self._hashes = self.table["sha256"].to_pylist()
        self._rows: dict[str, list[int]] = {}
        for row, sha256 in enumerate(self._hashes):
            self._rows.setdefault(sha256, []).append(row)

    def rows(self, pictures: Iterable[str]) -> Rows:
        """All rows of these pictures, copies included."""
        return np.array([row for picture in pictures for row in self._rows.get(picture, ())], dtype=np.int64)

    def members(self, cluster: int) -> Rows:
        """Rows of a cluster."""
        return np.flatnonzero(self.labels == cluster)

    def find(self, anchors: Anchors) -> int:
        """The cluster with more than half of the anchors that are still there."""
        rows = [self._rows[picture][0] for picture in anchors.pictures if picture in self._rows]
        if not rows:
            raise _UnmatchedError(f"the pictures of {anchors.name} are gone")
        (cluster, count), *_ = Counter(self.labels[rows].tolist()).most_common(1)
        if 2 * count <= len(rows):
            raise _UnmatchedError(f"the pictures of {anchors.name} are spread over several clusters")
        return cluster

    def new_id(self) -> int:
        """An id for a cluster that the fit does not know."""
        self._next_id += 1
        return self._next_id - 1

    def put(self, rows: Rows, cluster: int) -> None:
        """Put rows into a cluster."""
        rows = rows[self.labels[rows] != cluster]
        if not len(rows):
            return
        self._changed |= {cluster, *self.labels[rows].tolist()}
        self.labels[rows] = cluster

    def absorb(self, first: int, other: int) -> None:
        """Let one cluster take in another, with its typical texts."""
        self.put(self.members(other), first)
        absorbed = self.clusters.pop(other)
        self._merged[other] = first
        for texts in ("nouns", "captions"):
            both = zip_longest(self.clusters[first][texts], absorbed[texts])
            distinct = dict.fromkeys(text for text in chain.from_iterable(both) if text is not None)
            self.clusters[first][texts] = list(distinct)[:TEXTS_PER_CLUSTER]

    def rename(self, cluster: int, name: str) -> None:
        """Call a cluster something; a gloss belongs to a name and goes with it."""
        if name != self.clusters[cluster]["name"]:
            self.clusters[cluster] |= {"name": name, "gloss": ""}

    def describe(self, cluster: int, name: str) -> None:
        """Make a cluster's record from its pictures' own texts."""
        members = self.table.take(self.members(cluster))
        nouns = Counter(chain.from_iterable(members["top_nouns"].to_pylist()))
        captions = Counter(caption for caption in members["top_caption"].to_pylist() if caption)
        self.clusters[cluster] = {
            "id": cluster,
            "name": name,
            "gloss": "",
            "nouns": [noun for noun, _ in nouns.most_common(TEXTS_PER_CLUSTER)],
            "captions": [caption for caption, _ in captions.most_common(TEXTS_PER_CLUSTER)],
        }
        self._changed.add(cluster)

    def most_typical(self, rows: Rows) -> Rows:
        """Rows in order of similarity to their mean image embedding, the most similar first."""
        x = self.x[rows]
        return rows[(x @ x.mean(dim=0)).argsort(descending=True, stable=True).numpy()]

    def anchors(self, rows: Rows, name: str, n: int | None = N_ANCHORS) -> Anchors:
        """The first n pictures of some rows that can be known again."""
        hashes = dict.fromkeys(self._hashes[row] for row in rows.tolist() if self._hashes[row] is not None)
        if not hashes:
            raise EditError(f"no picture of {name} has a hash to know it by; run `cae cluster` again")
        return Anchors(name, tuple(hashes)[:n])

    def part_names(self, cluster: int, parts: Sequence[Rows]) -> list[str]:
        """The noun that tells each part from the others, none that another cluster is called."""
        nouns = self.table["top_nouns"].to_pylist()
        counts = [Counter(chain.from_iterable(nouns[row] for row in part.tolist())) for part in parts]
        taken = {record["name"] for id, record in self.clusters.items() if id != cluster}
        free = sorted(set().union(*counts) - taken)
        if len(free) < len(parts):
            return [f"{self.clusters[cluster]['name']} {i + 1}" for i in range(len(parts))]
        mass = normalize(torch.tensor([[count[noun] for noun in free] for count in counts]).float(), p=1, dim=1)
        return assign_names(typicality(mass), free)

    def assignments(self) -> pa.Table:
        """The table as it is now."""
        present = set(self.labels.tolist())
        runner_up = [
            other if (other := self._merged_into(old)) != own and other in present else None
            for old, own in zip(self.table["runner_up"].to_pylist(), self.labels.tolist(), strict=True)
        ]
        columns = {
            "cluster": pa.array(self.labels),
            "name": pa.array([self.clusters[label]["name"] for label in self.labels.tolist()], pa.string()),
            "runner_up": pa.array(runner_up, pa.int64()),
        }
        table = self.table
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, values)
        return table

    def records(self) -> list[dict[str, Any]]:
        """The clusters that have pictures."""
        paths, records = self.table["path"].to_pylist(), []
        for id, record in self.clusters.items():
            members = self.members(id)
            if not len(members):
                continue
            if id in self._changed:
                typical = self.most_typical(members)[:N_REPRESENTATIVES].tolist()
                record = {**record, "size": len(members), "representatives": [paths[row] for row in typical]}
            records.append(record)
        return records

    def _merged_into(self, cluster: int) -> int:
        while cluster in self._merged:
            cluster = self._merged[cluster]
        return cluster


def _read_edit(record: Mapping[str, Any]) -> Edit:
    """An edit out of JSON, every field checked.

    Raises:
        ValueError, KeyError: it is not one.
    """
    if record["edit"] not in _KINDS:
        raise ValueError(f"unknown edit {record['edit']!r}")
    kind = _KINDS[record["edit"]]
    return kind(**{field.name: _READ[field.name](record[field.name]) for field in fields(kind)})


def _read_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a name must be a text, got {value!r}")
    return value


def _read_hashes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(picture, str) for picture in value):
        raise ValueError("pictures must be a list of at least one hash")
    return tuple(value)


def _read_anchors(value: Any) -> Anchors:
    return Anchors(_read_name(value["name"]), _read_hashes(value["pictures"]))


def _read_several(value: Any) -> tuple[Anchors, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError("clusters and parts must be lists of at least two")
    return tuple(_read_anchors(cluster) for cluster in value)


_READ: dict[str, Callable[[Any], Any]] = {
    "cluster": _read_anchors,
    "clusters": _read_several,
    "parts": _read_several,
    "name": _read_name,
    "pictures": _read_hashes,
}
