"""A tree over the K clusters of a fit: their merges above, their splits below, from the same z.

Everything is read off the graph of nearest neighbours of a sample:

- above, the two groups with the most weight of edges for each pair of images between them become one (average linkage),
  until `FEWEST` are left;
- below, a group falls in two where the graph of its own images is cut most cheaply (normalised cut), the groups whose
  cut is cheap for their size first. As in `cae.method.cluster_count` modularity decides whether a split means
  something: here that of the two parts on the graph of the group alone.

So there is one partition for every number of clusters between the fewest and the leaves, each nested in the next. An
image goes to its cluster of the fit and, inside it, to the leaf whose mean is the nearest in discriminants between the
leaves; all other levels follow from its leaf. Alternatives, with figures: benchmarks/README.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import cosine_similarity

from cae.config import CAEConfig
from cae.method.kmeans import Assignment, confidence, sample_rows
from cae.method.partition import Partition
from cae.method.spectral import cluster_qr, discriminants, leading_eigenvectors, sample_graph
from cae.utils.distributed import all_reduce_count, broadcast_from_first, is_first
from cae.utils.progress import stage
from cae.utils.sparse import incidence
from cae.utils.words import counted

SAMPLE, SAMPLE_PER_CLUSTER = 4096, 20
"""Most images in the graph: SAMPLE, or SAMPLE_PER_CLUSTER for each cluster if that is more."""

FEWEST = 2
"""Groups at the top of the tree."""

LEAVES, LEAVES_PER_CLUSTER = 256, 3
"""Most leaves; with many clusters that many for each."""

MEANINGFUL = 0.15
"""Least modularity of a split on the graph of the group's own images; two halves without an edge between have 0.5."""

SMALLEST = 3
"""Images of the sample in a leaf: as few as `cae.method.cluster_count` allows on average."""

LINKAGE_POWER = 0.9
"""Exponent of the groups' sizes that the weight between two groups is divided by. 1 is average linkage, which merges
large groups late."""

SIZE_POWER = 0.15
"""Exponent of a group's size in the order of splits: 0 orders by the cut alone, 1 nearly by size alone. From 0.05 to
0.15 a cut at the true K loses least on the worst of three sets of CLIP features (benchmarks/README.md)."""

Ints = NDArray[np.int64]


class Placement(NamedTuple):
    """Where images are on all levels of a tree, for `Hierarchy.at`.

    What a level says of an image depends only on its group there. So there is a column for each group on the way down
    to the image's leaf: the coarsest group first, down to its cluster of the fit, compared with other clusters; then
    from that cluster again down to the leaf, compared with other leaves. A way shorter than the longest repeats its
    end.

    Attributes:
        leaf: (N,) int64, the leaf of each image.
        similarity: (N, 2) float32, as in `Assignment`, to its cluster of the fit and to its leaf.
        confidence: (N, C) float32, as in `Assignment`.
        runner_up: (N, C) int32, the nearest cluster, or leaf, outside of the group.
    """

    leaf: Tensor
    similarity: Tensor
    confidence: Tensor
    runner_up: Tensor


@dataclass(frozen=True)
class Hierarchy:
    """A binary tree of groups, in the order in which a coarse partition becomes a fine one.

    Nodes 0 to `roots` - 1 are the coarsest partition. Split i takes node `splits[i]` apart, into the nodes
    `roots` + 2 i and `roots` + 2 i + 1. After each split there is one group more.

    Attributes:
        n_clusters: K of the fit, one of the levels.
        roots: groups of the coarsest level.
        splits: the node that each split takes apart.
        leaves: node of each of the L leaves, those of the fit's first cluster first, then those of the second, ….
        prototypes: (L, D) float32, the mean z of each leaf.
        metric: (D, d) float32; a leaf of the image's cluster is the nearest by z @ metric.

    Raises:
        ValueError: this is no such tree.
    """

    n_clusters: int
    roots: int
    splits: tuple[int, ...]
    leaves: tuple[int, ...]
    prototypes: Tensor = field(repr=False)
    metric: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a tree, perhaps read from a file, that is inconsistent."""
        if not 0 < self.roots <= len(self.leaves):
            raise ValueError(f"a tree of {len(self.leaves)} leaves cannot begin with {self.roots} groups")
        alive = set(range(self.roots))
        for i, node in enumerate(self.splits):
            if node not in alive:
                raise ValueError(f"split {i} of the tree is of {node}, which is no group by then")
            alive ^= {node, self.roots + 2 * i, self.roots + 2 * i + 1}
        if sorted(self.leaves) != sorted(alive) or not self.roots <= self.n_clusters <= len(self.leaves):
            raise ValueError("the leaves of the tree are not what its splits leave")

    @property
    def n_nodes(self) -> int:
        """Groups of all levels together."""
        return self.roots + 2 * len(self.splits)

    @property
    def levels(self) -> range:
        """The numbers of clusters that there is a partition for."""
        return range(self.roots, len(self.leaves) + 1)

    @property
    def held(self) -> str:
        """The levels in words, for errors."""
        fewest, most = self.levels[0], self.levels[-1]
        return counted(most, "group") if fewest == most else f"{fewest} to {most} groups"

    @cached_property
    def parents(self) -> list[int | None]:
        """The node that each node is a part of; None for the coarsest."""
        return [*[None] * self.roots, *(node for node in self.splits for _ in range(2))]

    def nodes(self, n: int) -> list[int]:
        """The n nodes of a level, in the order of their first leaves: on the level of the fit that of its clusters."""
        return list(dict.fromkeys(self._node_of_leaf(n)))

    def cluster_of_leaf(self, n: int) -> Tensor:
        """(L,) int64, the place of each leaf's node in `nodes(n)`."""
        place = {node: i for i, node in enumerate(self.nodes(n))}
        return torch.tensor([place[node] for node in self._node_of_leaf(n)])

    def path(self, node: int) -> list[int]:
        """The nodes from the coarsest down to this one."""
        steps: list[int] = []
        at: int | None = node
        while at is not None:
            steps.append(at)
            at = self.parents[at]
        return steps[::-1]

    def contains(self, nodes: Sequence[int]) -> csr_array:
        """Which groups hold each of P nodes: sparse (n_nodes, P) float64, 1 where a group is the node or above it."""
        return incidence([self.path(node) for node in nodes], self.n_nodes).T.tocsr().astype(np.float64)

    @property
    def columns(self) -> tuple[int, int]:
        """How many columns of a `Placement` compare with clusters, and how many with leaves."""
        return self._ways_above.first.shape[1], self._ways_below.first.shape[1]

    def leaf(self, z: Tensor, clusters: Tensor) -> Tensor:
        """The leaf of each image, (N,) int64.

        Args:
            z: (N, D) float32.
            clusters: (N,) int64, its cluster of the fit.
        """
        return self._nearest_leaf(self._to_leaves(z), clusters)

    def assign(self, z: Tensor, partition: Partition, n: int) -> tuple[Assignment, Tensor]:
        """Where images go on a level, and their leaves (N,) int64.

        On other levels than the fit's, a cluster is as far from an image as the nearest of its parts: clusters of the
        fit for a coarser level, leaves for a finer one. `similarity` is to that part.

        Args:
            z: (N, D) float32.
            partition: the partition of the fit.
            n: number of clusters, one of `levels`.
        """
        if n == self.n_clusters:
            found = partition.assign(z)
            return found, self.leaf(z, found.labels)
        placed = self.place(z, partition)
        return self.at(n, placed), placed.leaf

    def place(self, z: Tensor, partition: Partition, leaf: Tensor | None = None) -> Placement:
        """Where images are on all levels.

        Args:
            z: (N, D) float32.
            partition: the partition of the fit.
            leaf: (N,) int64, the leaf of each image if it is known. Where z has been rounded since, an image may lie
                nearer to another group than to its own: it stays there, with a confidence of 0.
        """
        found, to_leaves, to_clusters = partition.assign(z), self._to_leaves(z), partition.distances(z)
        if leaf is None:
            leaf = self._nearest_leaf(to_leaves, found.labels)
        cluster = self._clusters.to(z.device)[leaf]
        if not partition.spherical:
            to_clusters = to_clusters.square()
        above, beside = _compared(to_clusters, cluster, self._ways_above)
        below, leaf_beside = _compared(to_leaves.square(), leaf, self._ways_below)
        # On the level of the fit exactly what the fit says.
        crossed, at_fit = found.labels != cluster, self._at_fit.to(z.device)[leaf].unsqueeze(1)
        above.scatter_(1, at_fit, found.confidence.masked_fill(crossed, 0).unsqueeze(1))
        beside.scatter_(1, at_fit, torch.where(crossed, found.labels, found.runner_up).unsqueeze(1))
        return Placement(
            leaf,
            torch.stack([found.similarity, cosine_similarity(z, self.prototypes[leaf])], dim=1),
            torch.cat([above, below], dim=1),
            torch.cat([beside, leaf_beside], dim=1).int(),
        )

    def at(self, n: int, placed: Placement) -> Assignment:
        """A level, out of all.

        Args:
            n: number of clusters, one of `levels`.
            placed: where the images are.
        """
        of, column = (table.to(placed.leaf.device) for table in (self.cluster_of_leaf(n), self._columns(n)))
        column, fine = column[placed.leaf].unsqueeze(1), n > self.n_clusters
        beside = placed.runner_up.gather(1, column).squeeze(1).long()
        return Assignment(
            labels=of[placed.leaf],
            runner_up=of[beside if fine else self._first_leaves.to(of.device)[beside]],
            confidence=placed.confidence.gather(1, column).squeeze(1),
            similarity=placed.similarity[:, int(fine)],
        )

    def check(self, placed: Placement) -> None:
        """Refuse a placement, perhaps read from a file, that cannot be of this tree. Its leaves are not looked at.

        Raises:
            ValueError: it has another shape, or holds something else than numbers of parts.
        """
        n, (above, below) = len(placed.leaf), self.columns
        width = above + below
        kinds = {
            "similarity": (2, torch.float32),
            "confidence": (width, torch.float32),
            "runner_up": (width, torch.int32),
        }
        for name, (columns, dtype) in kinds.items():
            tensor = getattr(placed, name)
            if tensor.shape != (n, columns) or tensor.dtype != dtype or not tensor.isfinite().all():
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} in place of numbers {(n, columns)}")
        for beside, parts in zip(
            placed.runner_up.split([above, below], dim=1), (self.n_clusters, len(self.leaves)), strict=True
        ):
            if n and not 0 <= int(beside.min()) <= int(beside.max()) < parts:
                raise ValueError(f"runner_up is not one of {parts}")

    def to(self, device: torch.device | str) -> Self:
        """The same tree with its tensors on `device`."""
        return replace(self, prototypes=self.prototypes.to(device), metric=self.metric.to(device))

    def _node_of_leaf(self, n: int) -> list[int]:
        if n not in self.levels:
            raise ValueError(f"the tree holds {self.held}, not {n}")
        # The nodes that are there by then were made by the first n - roots splits.
        made = self.roots + 2 * (n - self.roots)
        return [max(node for node in path if node < made) for path in self._paths]

    def _columns(self, n: int) -> Tensor:
        """(L,) int64, the columns of a `Placement` that tell of the leaves' nodes on a level."""
        steps = [path.index(node) for path, node in zip(self._paths, self._node_of_leaf(n), strict=True)]
        if n <= self.n_clusters:
            return torch.tensor(steps)
        return self.columns[0] + torch.tensor(steps) - self._at_fit

    def _to_leaves(self, z: Tensor) -> Tensor:
        """(N, L) float32 distances."""
        return torch.cdist(z @ self.metric, self._places)

    def _nearest_leaf(self, to_leaves: Tensor, clusters: Tensor) -> Tensor:
        of = self._clusters.to(to_leaves.device)
        return to_leaves.masked_fill(of != clusters.unsqueeze(1), torch.inf).argmin(dim=1)

    # What follows is made once, for images come in small blocks.
    @cached_property
    def _places(self) -> Tensor:
        """(L, d), where the leaves lie in the metric."""
        return self.prototypes @ self.metric

    @cached_property
    def _clusters(self) -> Tensor:
        """(L,) int64, the leaves' clusters of the fit."""
        return self.cluster_of_leaf(self.n_clusters)

    @cached_property
    def _at_fit(self) -> Tensor:
        """(L,) int64, the columns of a `Placement` that tell of the leaves' clusters of the fit."""
        return self._columns(self.n_clusters)

    @cached_property
    def _first_leaves(self) -> Tensor:
        """(K,) int64, a leaf of each cluster of the fit."""
        return self._clusters.diff(prepend=torch.tensor([-1])).nonzero().squeeze(1)

    @cached_property
    def _ways_above(self) -> _Ways:
        """From the coarsest groups down to the K clusters of the fit."""
        return _Ways.of([self.path(node) for node in self.nodes(self.n_clusters)], self.prototypes.device)

    @cached_property
    def _ways_below(self) -> _Ways:
        """From the clusters of the fit down to the L leaves."""
        clusters = self._node_of_leaf(self.n_clusters)
        ways = [path[path.index(cluster) :] for path, cluster in zip(self._paths, clusters, strict=True)]
        return _Ways.of(ways, self.prototypes.device)

    @cached_property
    def _paths(self) -> list[list[int]]:
        """The path of each leaf."""
        return [self.path(leaf) for leaf in self.leaves]


class _Ways(NamedTuple):
    """The ways down a tree to P parts, put in an order in which each group is a stretch.

    Attributes:
        order: (P,) int64, the parts in this order.
        first: (P, C) int64, for each group on the way to a part the place where it begins; shorter ways stay at the
            part.
        last: (P, C) int64, the place where the next one begins.
    """

    order: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, ways: Sequence[list[int]], device: torch.device) -> Self:
        """Of the nodes on each way."""
        longest, order = max(map(len, ways)), sorted(range(len(ways)), key=ways.__getitem__)
        nodes = torch.tensor([ways[part] + ways[part][-1:] * (longest - len(ways[part])) for part in order])
        stretches = [column.unique_consecutive(return_inverse=True, return_counts=True) for column in nodes.unbind(1)]
        last = torch.stack([sizes.cumsum(0)[which] for _, which, sizes in stretches], dim=1)
        first = last - torch.stack([sizes[which] for _, which, sizes in stretches], dim=1)
        place = torch.tensor(order).argsort()
        return cls(torch.tensor(order).to(device), first[place].to(device), last[place].to(device))


def _compared(away: Tensor, own: Tensor, ways: _Ways) -> tuple[Tensor, Tensor]:
    """Compare images with what is outside of each group on the way down to their own part.

    Args:
        away: (N, P) float32 distances to all parts.
        own: (N,) int64, the part of each image.
        ways: the ways to the parts.

    Returns:
        How sure each step is, (N, C) float32, and the nearest part outside, (N, C) int64.
    """
    n_parts, nothing = away.shape[1], away.new_full((len(away), 1), torch.inf)
    row = away[:, ways.order]
    # The nearest among the first i parts of the row, and among the last i, for all i at once.
    nearest_before, place_before = torch.cat([nothing, row], dim=1).cummin(dim=1)
    nearest_after, place_after = torch.cat([nothing, row.flip(1)], dim=1).cummin(dim=1)
    before, after = ways.first[own], n_parts - ways.last[own]
    left, right = nearest_before.gather(1, before), nearest_after.gather(1, after)
    place = torch.where(left <= right, place_before.gather(1, before) - 1, n_parts - place_after.gather(1, after))
    far, near = left.minimum(right), away.gather(1, own.unsqueeze(1))
    return confidence(near, far), ways.order[place.clamp(0, n_parts - 1)]  # a group of everything has nothing outside


@stage("tree of groups")
def grow(
    z: Tensor,
    partition: Partition,
    config: CAEConfig,
    *,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Hierarchy:
    """The tree over the clusters of a fit.

    Args:
        z: (N, D) float32 or float16. With `group`, only this rank's rows.
        partition: its K clusters.
        config: gives K and the seed of the sample.
        index: (N,) int64, the ids of the images, all different; required with `group`, else 0 to N - 1 by default.
        group: the processes that share the images; every rank gets the same tree.
    """
    k = config.n_clusters
    size = min(all_reduce_count(len(z), group), max(SAMPLE, SAMPLE_PER_CLUSTER * k))
    sample = sample_rows(z, index, size, config.seed, group).to(z.device)
    tree, prototypes = torch.empty(0, dtype=torch.int64), partition.centroids.float()
    if is_first(group):
        labels = partition.assign(sample).labels.cpu().numpy()
        rows, graph = sample_graph(sample, k)
        merges = _merges(graph, labels, k)
        splits, labels = _splits(graph, rows.cpu(), labels, k, config.seed)
        tree, leaves = _numbered(k, merges, splits)
        place = np.full(k + 2 * len(splits), -1)
        place[leaves] = np.arange(len(leaves))
        prototypes, metric = discriminants(sample, place[labels], len(leaves))
        # The sample may have missed a small cluster, which then is a leaf.
        missed = np.setdiff1d(leaves, labels)
        prototypes[place[missed]] = partition.centroids[missed].float()
    else:
        metric = prototypes
    sizes = broadcast_from_first(torch.tensor([len(tree), *prototypes.shape, metric.shape[1]]), group).tolist()
    if not is_first(group):
        tree, prototypes = tree.new_empty(sizes[0]), prototypes.new_empty(sizes[1:3])
        metric = prototypes.new_empty(sizes[2:])
    roots, *numbers = broadcast_from_first(tree, group).tolist()
    return Hierarchy(
        n_clusters=k,
        roots=roots,
        splits=tuple(numbers[: sizes[1] - roots]),
        leaves=tuple(numbers[sizes[1] - roots :]),
        prototypes=broadcast_from_first(prototypes.contiguous(), group),
        metric=broadcast_from_first(metric.contiguous(), group),
    )


def _merges(graph: csr_array, labels: Ints, k: int) -> list[tuple[int, int]]:
    """Average linkage of the K groups: the two that each merge joins. The first merge makes group K."""
    n = graph.shape[0]
    member = csr_array((np.ones(n), (np.arange(n), labels)), shape=(n, k))
    weight = np.zeros((2 * k, 2 * k))
    weight[:k, :k] = (member.T @ graph @ member).toarray()
    size = np.maximum(weight.sum(axis=1), np.finfo(np.float64).tiny) ** LINKAGE_POWER
    alive, merges = list(range(k)), list[tuple[int, int]]()
    while len(alive) > FEWEST:
        likeness = weight[np.ix_(alive, alive)] / size[alive] / size[alive][:, None]
        np.fill_diagonal(likeness, -1)
        a, b = (alive[int(i)] for i in np.unravel_index(likeness.argmax(), likeness.shape))
        new = k + len(merges)
        weight[new] = weight[a] + weight[b]
        weight[:, new] = weight[:, a] + weight[:, b]
        size[new] = (size[a] ** (1 / LINKAGE_POWER) + size[b] ** (1 / LINKAGE_POWER)) ** LINKAGE_POWER
        merges.append((a, b))
        alive = [group for group in alive if group not in (a, b)] + [new]
    return merges


def _splits(graph: csr_array, rows: Tensor, labels: Ints, k: int, seed: int) -> tuple[list[int], Ints]:
    """Take groups apart, the clearest first.

    Args:
        graph: (S, S) of the sample.
        rows: (S, D) float32 unit rows that it was made of.
        labels: (S,) in [0, k).
        k: number of clusters.
        seed: seed of the eigen-solver.

    Returns:
        The group that each split takes apart, into groups k + 2 i and k + 2 i + 1; and (S,) the group of each image.
    """
    labels, splits = labels.copy(), list[int]()
    waiting: list[tuple[float, int, Ints, Ints]] = []

    def consider(group: int) -> None:
        members = np.flatnonzero(labels == group)
        worth, second = _halves(graph, rows, members, seed)
        if worth is not None:
            heapq.heappush(waiting, (-worth, group, members, second))

    for group in range(k):
        consider(group)
    while waiting and k + len(splits) < max(LEAVES, LEAVES_PER_CLUSTER * k):
        _, group, members, second = heapq.heappop(waiting)
        first = k + 2 * len(splits)
        splits.append(group)
        labels[members] = first + second
        consider(first)
        consider(first + 1)
    return splits, labels


def _halves(graph: csr_array, rows: Tensor, members: Ints, seed: int) -> tuple[float | None, Ints]:
    """The cheapest cut through a group: how much it is worth, None if it means nothing, and 0 or 1 for each member."""
    own = csr_array(graph[members][:, members])
    weight = own.sum()
    if len(members) < 2 * SMALLEST or not weight:
        return None, members
    second = cluster_qr(leading_eigenvectors(own, rows[torch.from_numpy(members)], 2, seed))
    sizes = np.bincount(second, minlength=2)
    sides = np.stack([second == 0, second == 1]).astype(np.float64)
    edges = sides @ (own @ sides.T)
    volume = edges.sum(axis=1)
    inside = np.diag(edges)
    modularity = (inside / weight - (volume / weight) ** 2).sum()
    if sizes.min() < SMALLEST or modularity < MEANINGFUL:
        return None, members
    cut = (1 - inside / volume).sum()
    return float((1 - cut) * len(members) ** SIZE_POWER), second


def _numbered(k: int, merges: Sequence[tuple[int, int]], splits: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The tree as `Hierarchy` numbers its nodes.

    Args:
        k: number of clusters.
        merges: merges of the K clusters, by `_merges`.
        splits: groups that are split, by `_splits`.

    Returns:
        One after the other: the number of roots, the node of each split, the node of each leaf, (1 + 2 L - roots,);
        and the leaves as `_splits` numbers groups.
    """
    # Undo the merges, the last one first. Groups that merges made get negative numbers, unlike those of splits.
    apart = [(k + i, pair) for i, pair in reversed(list(enumerate(merges)))]
    named = {i: i if i < k else -1 - i for i in range(k + len(merges))}
    steps = [(named[whole], (named[a], named[b])) for whole, (a, b) in apart]
    steps += [(group, (k + 2 * i, k + 2 * i + 1)) for i, group in enumerate(splits)]
    parts = {part for _, pair in steps for part in pair}
    roots = [group for group in [*range(k), *(whole for whole, _ in steps)] if group not in parts]
    node = {group: i for i, group in enumerate(dict.fromkeys(roots))}
    cluster = dict(zip(range(k), range(k), strict=True))
    taken_apart, n_roots = [], len(node)
    for whole, pair in steps:
        taken_apart.append(node[whole])
        for part in pair:
            node[part] = n_roots + 2 * (len(taken_apart) - 1) + (part == pair[1])
            cluster.setdefault(part, cluster.get(whole, -1))
    whole_groups = {whole for whole, _ in steps}
    leaves = sorted((group for group in node if group not in whole_groups), key=lambda group: (cluster[group], group))
    return torch.tensor([n_roots, *taken_apart, *(node[leaf] for leaf in leaves)]), leaves
