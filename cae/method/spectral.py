"""Spectral clustering of z, in place of the k-means of Eq. 18, with a closed form that labels any image.

K-means looks for round clusters of equal width, which embeddings of real images do not form. A graph of neighbours asks
for less: that an image lies near some images of its own kind. On CLIP features this is worth more than any other
setting (figures: benchmarks/README.md). The steps, on a sample of bounded size:

1. half-whiten z: divide principal components by the fourth root of their variance, so that the few wide directions,
   which are often style, do not alone decide who is near;
2. join each image to its nearest neighbours (`cae.method.graph`), and a little to all others by 1 + cosine. As in
   regularised spectral clustering (Amini et al. 2013) stray images are then no clusters of their own; and of more
   separate groups than K, such as bursts of photographs, those that are alike come together;
3. take the K leading eigenvectors of D^-1/2 A D^-1/2 (Ng et al. 2002) and read the clusters off a pivoted QR
   factorisation of them (Damle et al. 2019), which has no restarts and no luck;
4. fit linear discriminants to these clusters (Fisher 1936, K - 1 of them). An image gets the cluster whose mean is the
   nearest in the discriminants. So new images are labelled as the fitted ones were, and a small cluster is not
   swallowed by a large one, as happens with ridge regression on the labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cae.method.graph import NEIGHBOURS, neighbour_graph
from cae.method.kmeans import assign, check_points, cluster_sums, order_of_appearance, sample_rows
from cae.utils.distributed import all_reduce_count, broadcast_from_first, is_first
from cae.utils.progress import stage

SAMPLE, SAMPLE_PER_CLUSTER = 2**14, 20
"""Most images that the graph has; with many clusters that many for each."""

WHITENING = 0.25
"""Principal components are divided by this power of their variance: 0 leaves them, 1/2 whitens."""

SHRINKAGE = 0.1
"""Share of the mean variance that is added to the variance of each principal component."""

REGULARISATION = 0.1
"""Weight of an image's edges to all images together, as a share of that of its edges to neighbours, on average."""

DENSE = 1000
"""Up to this many images, or where more than an eighth of all eigenvectors is needed, the matrix is dense."""

MANY = 200
"""From this many eigenvectors on they are found in blocks: ARPACK, vector by vector, takes minutes for 1,000."""

ROUNDS, DEGREE, SPARE = 3, 12, 8
"""Rounds that many eigenvectors take, degree of the polynomial of each, and that one more in so many is sought."""

ROUNDNESS = 3.0
"""Multiple of its mean that is added to the variance inside clusters in every direction: of 0.3 to 1,000 the best for
images that the fit has not seen. Without it, directions with little data would dominate."""

FLOOR = 1e-6
"""Least variance that is added to that inside clusters, where all images of a cluster are the same."""

Floats = NDArray[np.float64]


class Discriminants(NamedTuple):
    """Clusters, and the metric that images are compared with them in.

    Attributes:
        centroids: (K, D) float32, the mean z of each cluster.
        metric: (D, min(D, K - 1)) float32. Euclidean distances of z @ metric count spread inside clusters as 1.
    """

    centroids: Tensor
    metric: Tensor


@stage("spectral clustering")
def spectral(
    z: Tensor,
    k: int,
    *,
    seed: int,
    index: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Discriminants | None:
    """Clusters of z by the graph of nearest neighbours.

    Args:
        z: (N, D) on any device, float32 or float16. With `group`, only this rank's rows.
        k: number of clusters, from 2 to N.
        seed: seed of the sample and of the eigen-solver's start.
        index: (N,) int64, the ids of the images, all different; required with `group`, else 0 to N - 1 by default.
        group: the processes that share the images.

    Returns:
        The same on every rank, in the order in which the clusters first appear among the images by `index`. None where
        the graph does not separate K clusters, as with fewer than K different images.

    Raises:
        ValueError: fewer images than clusters, NaN or infinity in `z`, or a group without `index`; on every rank.

    Example:
        >>> import torch
        >>> angles = torch.cat([torch.linspace(0, 0.5, 40), torch.linspace(2, 2.5, 40)])
        >>> found = spectral(torch.stack([angles.cos(), angles.sin()], dim=1), 2, seed=0)
        >>> found.centroids.shape, found.metric.shape
        (torch.Size([2, 2]), torch.Size([2, 1]))
    """
    check_points(z, k, group)
    n = all_reduce_count(len(z), group)
    sample = sample_rows(z, index, min(n, max(SAMPLE, SAMPLE_PER_CLUSTER * k)), seed, group).to(z.device)
    width = z.shape[1]
    found = Discriminants(sample.new_empty(k, width), sample.new_empty(width, min(width, k - 1)))
    told_apart = torch.tensor(False)
    if is_first(group):
        rows, graph = sample_graph(sample, k)
        vectors = leading_eigenvectors(graph, rows, k, seed)
        found = discriminants(sample, cluster_qr(vectors), k)
        labels = assign(sample, *found).labels
        found = found._replace(centroids=found.centroids[order_of_appearance(labels, k)])
        told_apart = torch.tensor(len(labels.unique()) == k)
    if not broadcast_from_first(told_apart, group):
        return None
    return Discriminants(*(broadcast_from_first(part.contiguous(), group) for part in found))


def sample_graph(sample: Tensor, k: int) -> tuple[Tensor, csr_array]:
    """The whitened rows of a sample (S, D), and the graph of their nearest neighbours, for K clusters."""
    rows = whitened(sample)
    # Few images have few neighbours of their own kind: no more than a cluster of average size holds.
    return rows, neighbour_graph(rows, min(NEIGHBOURS, max(2, len(sample) // k)))


def whitened(rows: Tensor) -> Tensor:
    """Rows (S, D), centred and partly whitened (see `WHITENING`), as float32 unit rows (S, min(S, D)) in some basis."""
    rows = rows.double() - rows.mean(dim=0, dtype=torch.float64)
    few, width = len(rows) < rows.shape[1], rows.shape[1]
    # The principal components, or with fewer rows than those the rows' coordinates in them, from the smaller product.
    variance, vectors = torch.linalg.eigh((rows @ rows.T if few else rows.T @ rows) / len(rows))
    variance = variance.clamp_min(0)
    coordinates = vectors * (len(rows) * variance).sqrt() if few else rows @ vectors
    variance = variance + SHRINKAGE * (variance.sum() / width).clamp_min(torch.finfo(torch.float32).tiny)
    return normalize(coordinates * variance**-WHITENING, dim=1).float()


def leading_eigenvectors(graph: csr_array, rows: Tensor, k: int, seed: int) -> Floats:
    """The eigenvectors (N, k) of the k largest eigenvalues of D^-1/2 A D^-1/2, largest first.

    A is the graph plus the small multiple of 1 + cosine that `REGULARISATION` gives, which has rank D + 1 and is never
    written out for a large graph.

    Args:
        graph: (N, N) symmetric weights without negative ones.
        rows: (N, D) unit rows that the cosines are of.
        k: number of clusters, at most N.
        seed: seed of the solver's start.
    """
    n = graph.shape[0]
    # Low-rank factor F of the small edges, F F^T = c (1 + cosine).
    factor = np.concatenate([np.ones((n, 1)), rows.cpu().double().numpy()], axis=1)
    all_edges = factor @ factor.sum(axis=0)
    factor *= np.sqrt(REGULARISATION * graph.sum() / all_edges.sum())
    degree = graph.sum(axis=1) + factor @ factor.sum(axis=0)
    root = 1 / np.sqrt(degree)
    scaled, factor = diags_array(root) @ graph @ diags_array(root), factor * root[:, None]
    if n <= DENSE or k > n // 8:
        matrix = scaled.toarray() + factor @ factor.T
        vectors = scipy.linalg.eigh(matrix, subset_by_index=(n - k, n - 1))[1]
        # Of equal images, whose eigenvalues are all equal but one, LAPACK's search for some may find none.
        return (vectors if vectors.shape[1] == k else scipy.linalg.eigh(matrix)[1][:, n - k :])[:, ::-1]
    if k >= MANY:
        return many_eigenvectors(scaled, factor, k, seed)
    operator = LinearOperator((n, n), lambda v: scaled @ v + factor @ (v @ factor), dtype=np.float64)
    start = np.random.default_rng(seed).uniform(-1, 1, n)
    return eigsh(operator, k, which="LA", v0=start)[1][:, ::-1]


def many_eigenvectors(sparse: csr_array, factor: Floats, k: int, seed: int) -> Floats:
    """The k leading eigenvectors of S + F F^T, by Chebyshev-filtered subspace iteration (Zhou et al. 2006) in float32.

    All of its work is products of matrices, and a value that many vectors share is no harder than others. The last
    vectors, whose place in the order hardly matters to clusters, are less exact than the first.

    Args:
        sparse: (N, N) symmetric S.
        factor: (N, r) F; no eigenvalue of S + F F^T is outside [-1, 1].
        k: number of eigenvectors, at most N / 8.
        seed: seed of the start.

    Returns:
        (N, k), orthonormal in float32, of the largest eigenvalue first.
    """
    sparse, factor = sparse.astype(np.float32), factor.astype(np.float32)

    def multiply(block: NDArray[np.float32]) -> NDArray[np.float32]:
        return sparse @ block + factor @ (factor.T @ block)

    vectors = np.random.default_rng(seed).standard_normal((len(factor), k + k // SPARE), np.float32)
    for turn in range(ROUNDS + 1):
        vectors = scipy.linalg.qr(vectors, mode="economic", overwrite_a=True)[0]
        values, rotation = scipy.linalg.eigh(vectors.T @ multiply(vectors))
        vectors = vectors @ rotation
        if turn < ROUNDS:  # enlarge what is above the least value found, against the rest, from -1 on
            middle, half = np.float32(values[0] - 1) / 2, np.float32(values[0] + 1) / 2
            before, vectors = vectors, (multiply(vectors) - middle * vectors) / half
            for _ in range(DEGREE - 1):
                before, vectors = vectors, (multiply(vectors) - middle * vectors) * (2 / half) - before
    return vectors[:, : -k - 1 : -1].astype(np.float64)


def cluster_qr(vectors: Floats) -> NDArray[np.int64]:
    """Cluster labels from eigenvectors, without a start to choose (Damle, Minden & Ying 2019, algorithm 1).

    Args:
        vectors: (N, k) orthonormal columns.

    Returns:
        (N,) labels in [0, k).
    """
    k = vectors.shape[1]
    _, pivots = scipy.linalg.qr(vectors.T, mode="r", pivoting=True)
    # The k rows that are nearest to orthogonal become the axes, as far as a rotation can make them so.
    left, _, right = scipy.linalg.svd(vectors[pivots[:k]].T)
    return np.abs(vectors @ (left @ right)).argmax(axis=1)


def discriminants(rows: Tensor, labels: NDArray[np.int64], k: int) -> Discriminants:
    """Fisher's linear discriminants of labelled rows, each cluster counted alike.

    Args:
        rows: (S, D) float32.
        labels: (S,) in [0, k). A cluster without rows gets the mean of all as its centroid.
        k: number of clusters.
    """
    member = torch.from_numpy(labels).to(rows.device)
    sums, sizes = cluster_sums(rows, member, k)
    rows, mean = rows.double(), sums.sum(dim=0) / len(rows)
    sizes = sizes.unsqueeze(1)
    centroids = torch.where(sizes > 0, sums / sizes.clamp_min(1), mean)
    spread, offsets, width = rows - centroids[member], centroids - mean, rows.shape[1]
    # Fewer rows than dimensions: all happens in the rows' own span, whose size is theirs and not the square of D.
    basis = torch.linalg.qr((rows - mean).T).Q if len(rows) < width else None
    if basis is not None:
        spread, offsets = spread @ basis, offsets @ basis
    within = spread.T @ spread / len(rows)
    within.diagonal().add_(ROUNDNESS * (within.diagonal().sum() / width).clamp_min(FLOOR))
    # Generalised eigenvectors of the scatter between and inside clusters: where L L^T is the inner one, L^-T times the
    # left singular vectors of L^-1 (centroids - mean), of which K - 1 are not zero.
    lower = torch.linalg.cholesky(within)
    between = torch.linalg.solve_triangular(lower, offsets.T, upper=False)
    directions = torch.linalg.svd(between, full_matrices=False).U[:, : min(width, k - 1)]
    metric = torch.linalg.solve_triangular(lower.T, directions, upper=True)
    return Discriminants(centroids.float(), (metric if basis is None else basis @ metric).float())
