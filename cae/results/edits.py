"""What people change by hand in a result, applied to every view of it. `edits_file` reads and writes the list of edits.

The files of a fit stay as the fit wrote them. Edits are a list, applied in order each time the result is looked at
(`SavedResult.edited`); so they outlive the next `cae cluster` into the same folder, on the same images or on more.

Images are known by the SHA-256 of their bytes. A cluster has no number that a new fit would keep, so it is known by
images in it, its *anchors*: it is the cluster that now holds more than half of those anchors that are still there.
An edit whose anchors are all gone, or spread so that no cluster holds more than half, is not applied; it is reported,
kept, and tried again at the next look.

rename  The cluster shows `name`, and no gloss.
        After a new fit: so does the cluster that its anchors went to.
merge   The clusters become one, called `name`.
        After a new fit: so do the clusters that their anchors went to, if they are still apart; one whose anchors are
        all gone is left out.
split   The cluster falls into parts: an image goes to the part that lists it, else to the part whose listed images
        have the most similar mean image embedding.
        After a new fit: the same for the cluster that its anchors went to.
pin     Nothing changes.
        After a new fit: all its images are together under its name, in the cluster that holds more than half of them
        or else in one of their own. Images that the fit adds to that cluster stay.
move    The images are in that cluster.
        After a new fit: they are in the cluster that its anchors went to.

Images that are predicted go with the cluster that the model gives them, into its part where it was split
(`cae.results.predictions`); pins and moves concern the images that they list.

A renamed, merged or pinned cluster keeps its `id`, or the first one's; the first part of a split keeps the `id`, the
others get new ones; clusters left without images are gone. `confidence`, `similarity` and the weights stay those of the
fit; `runner_up` follows merges, and is null where it is no other cluster any more.

"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import nearest
from cae.method.names import choose
from cae.method.naming import TEXTS_PER_CLUSTER
from cae.method.typicality import typicality
from cae.results.representatives import representatives
from cae.utils.words import counted

N_ANCHORS = 25
"""Images by which an edit made here knows a cluster again: those most like its mean."""

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

    def apply(self, view: EditedView) -> None:
        """Give the cluster its new name, and drop its gloss."""
        view.rename(view.find(self.cluster), self.name)


@dataclass(frozen=True)
class Merge:
    """Make several clusters one, called `name`."""

    clusters: tuple[Anchors, ...]
    name: str

    def __str__(self) -> str:
        return f"merge {' and '.join(cluster.name for cluster in self.clusters)} as {self.name}"

    def apply(self, view: EditedView) -> None:
        """Join the clusters under the first one's id, and name them."""
        there = [cluster for cluster in self.clusters if len(view.rows(cluster.pictures))] or self.clusters
        first, *others = dict.fromkeys(view.find(cluster) for cluster in there)
        for other in others:
            view.absorb(first, other)
        view.rename(first, self.name)


@dataclass(frozen=True)
class Split:
    """Take a cluster apart, around the images of each part."""

    cluster: Anchors
    parts: tuple[Anchors, ...]

    def __str__(self) -> str:
        return f"split {self.cluster.name} into {' and '.join(part.name for part in self.parts)}"

    def apply(self, view: EditedView) -> None:
        """Put each image into the part whose listed images are most like it."""
        cluster = view.find(self.cluster)
        listed = [(part.name, rows) for part in self.parts if len(rows := view.rows(part.pictures))]
        if len(listed) < 2:
            raise UnmatchedError("the pictures that tell its parts from each other are gone")
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
    """Keep the images that a cluster has, and its name, through any new fit."""

    cluster: Anchors

    def __str__(self) -> str:
        return f"pin {self.cluster.name}"

    def apply(self, view: EditedView) -> None:
        """Put all its images together, in their cluster or in one of their own."""
        rows, name = view.rows(self.cluster.pictures), self.cluster.name
        if not len(rows):
            raise UnmatchedError("its pictures are gone")
        try:
            cluster = view.find(self.cluster)
        except UnmatchedError:
            cluster = view.new_id()
        if not set(self.cluster.pictures) & view.pinned.get(cluster, set(self.cluster.pictures)):
            cluster = view.new_id()  # another pinned cluster is there
        view.pinned[cluster] = set(self.cluster.pictures)
        view.put(rows, cluster)
        if cluster in view.clusters:
            view.rename(cluster, name)
        else:
            view.describe(cluster, name)


@dataclass(frozen=True)
class Move:
    """Put single images into a cluster."""

    cluster: Anchors
    pictures: tuple[str, ...]

    def __str__(self) -> str:
        return f"move {counted(len(self.pictures), 'picture')} to {self.cluster.name}"

    def apply(self, view: EditedView) -> None:
        """Put the images into the cluster."""
        cluster, rows = view.find(self.cluster), view.rows(self.pictures)
        if not len(rows):
            raise UnmatchedError("the pictures are gone")
        view.put(rows, cluster)


Edit = Rename | Merge | Split | Pin | Move


class UnmatchedError(Exception):
    """An edit is about images or clusters that are no longer there; the message says which."""


class EditedView:
    """A result while edits are applied to it.

    Args:
        result: the result as the fit left it.

    Attributes:
        root: the folder of the images.
        table: one row per image, as the fit left it.
        x: (N, D) float32 unit rows, the image embeddings.
        labels: (N,) int64, the cluster of each image.
        clusters: a record for each id; those that hold no image any more are there, too.
        pinned: hashes of the images that are pinned in a cluster, by its id.
        unmatched: a line for each edit that could not be applied, with the reason.
    """

    def __init__(self, result: Assigned) -> None:
        self.root, self.table = result.root, result.assignments
        self.x = normalize(result.embeddings.float(), dim=1)
        self._hashes = self.table["sha256"].to_pylist()
        self._rows: dict[str, list[int]] = {}
        for row, sha256 in enumerate(self._hashes):
            self._rows.setdefault(sha256, []).append(row)
        self._records = result.clusters
        self.reset()

    def reset(self) -> None:
        """Go back to the result without any edit."""
        self.labels: Rows = self.table["cluster"].to_numpy().copy()
        self.clusters = {record["id"]: dict(record) for record in self._records}
        self.pinned: dict[int, set[str]] = {}
        self.unmatched: list[str] = []
        self._merged: dict[int, int] = {}
        self._changed: set[int] = set()
        self._next_id = max(self.clusters, default=-1) + 1

    def apply(self, edits: Iterable[Edit]) -> Self:
        """Apply edits in order; see the module for what each means."""
        for edit in edits:
            try:
                edit.apply(self)
            except UnmatchedError as reason:
                self.unmatched.append(f"{edit}: {reason}")
        return self

    def branch(self) -> EditedView:
        """The same as it is now, to go on from; what edits do not change is shared."""
        other = copy(self)
        other.labels, other._changed, other._merged = self.labels.copy(), set(self._changed), dict(self._merged)
        other.clusters = {id: dict(record) for id, record in self.clusters.items()}
        other.pinned, other.unmatched = dict(self.pinned), list(self.unmatched)
        return other

    def rows(self, hashes: Iterable[str]) -> Rows:
        """All rows of the images with these hashes, copies included."""
        return np.array([row for sha256 in hashes for row in self._rows.get(sha256, ())], dtype=np.int64)

    def members(self, cluster: int) -> Rows:
        """Rows of a cluster."""
        return np.flatnonzero(self.labels == cluster)

    def names(self) -> dict[int, str]:
        """The name of each cluster that has images, by id."""
        present = set(self.labels.tolist())
        return {id: record["name"] for id, record in self.clusters.items() if id in present}

    def find(self, anchors: Anchors) -> int:
        """The cluster with more than half of the anchors that are still there."""
        rows = [self._rows[sha256][0] for sha256 in anchors.pictures if sha256 in self._rows]
        if not rows:
            raise UnmatchedError(f"the pictures of {anchors.name} are gone")
        (cluster, count), *_ = Counter(self.labels[rows].tolist()).most_common(1)
        if 2 * count <= len(rows):
            raise UnmatchedError(f"the pictures of {anchors.name} are spread over several clusters")
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
        """Merge a cluster into another, with its typical texts."""
        self.put(self.members(other), first)
        absorbed = self.clusters.pop(other)
        self._merged[other] = first
        if other in self.pinned:  # sets are shared with branches, and so not changed
            self.pinned[first] = self.pinned.get(first, set()) | self.pinned.pop(other)
        for texts in ("nouns", "captions"):
            both = zip_longest(self.clusters[first][texts], absorbed[texts])
            distinct = dict.fromkeys(text for text in chain.from_iterable(both) if text is not None)
            self.clusters[first][texts] = list(distinct)[:TEXTS_PER_CLUSTER]

    def rename(self, cluster: int, name: str) -> None:
        """Call a cluster something; a gloss belongs to a name and goes with it."""
        if name != self.clusters[cluster]["name"]:
            self.clusters[cluster] |= {"name": name, "gloss": ""}

    def describe(self, cluster: int, name: str) -> None:
        """Make a cluster's record from its images' own texts."""
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
        """The first n images of some rows that have a hash."""
        hashes = dict.fromkeys(self._hashes[row] for row in rows.tolist() if self._hashes[row] is not None)
        if not hashes:
            raise EditError(f"no picture of {name} has a hash to know it by; run `cae cluster` again")
        return Anchors(name, tuple(hashes)[:n])

    def part_names(self, cluster: int, parts: Sequence[Rows]) -> list[str]:
        """A noun for each part that is typical of it and not of the others, and not the name of another cluster."""
        nouns = self.table["top_nouns"].to_pylist()
        counts = [Counter(chain.from_iterable(nouns[row] for row in part.tolist())) for part in parts]
        taken = {name for id, name in self.names().items() if id != cluster}
        free = sorted(set().union(*counts) - taken)
        if len(free) < len(parts):
            return [f"{self.clusters[cluster]['name']} {i + 1}" for i in range(len(parts))]
        mass = normalize(torch.tensor([[count[noun] for noun in free] for count in counts]).float(), p=1, dim=1)
        return [free[j] for j in choose(typicality(mass)).tolist()]

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
        """The clusters that have images."""
        paths, records = self.table["path"].to_pylist(), []
        for id, record in self.clusters.items():
            members = self.members(id)
            if not len(members):
                continue
            if id in self._changed:
                typical = representatives(self.most_typical(members).tolist(), paths, self._hashes)
                record = {**record, "size": len(members), "representatives": [paths[row] for row in typical]}
            records.append(dict(record))
        return records

    def _merged_into(self, cluster: int) -> int:
        while cluster in self._merged:
            cluster = self._merged[cluster]
        return cluster
