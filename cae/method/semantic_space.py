"""Semantic space construction: which texts are relevant to these images (Eq. 1-3)."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.kernels import retrieve
from cae.method.kmeans import assign_to_nearest, cluster_sums, kmeans
from cae.utils.distributed import all_reduce_count
from cae.utils.progress import stage


def n_centers(n_images: int, config: CAEConfig) -> int:
    """How many semantic centers: N / 300 as in the paper, 3 K where that is below K (TAC's code), at most N."""
    n = round(n_images / config.images_per_center)
    return min(n if n >= config.n_clusters else 3 * config.n_clusters, n_images)


@stage("centers")
def semantic_centers(
    x: Tensor, config: CAEConfig, index: Tensor | None = None, group: ProcessGroup | None = None
) -> Tensor:
    """Eq. 1: the mean image embedding of each k-means cell.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        config: gives the number of centers and the seed.
        index: (N,) int64, the images' numbers, see `cae.method.kmeans.kmeans`.
        group: the processes that share the images.

    Returns:
        P (n, D) float32, means of unit vectors and so shorter than 1 where a cell is wide.
    """
    n = n_centers(all_reduce_count(len(x), group), config)
    # One restart: the centers only pick texts, and k-means++ seeding already spreads them.
    centroids = kmeans(
        x, n, spherical=True, n_init=1, max_iter=config.kmeans_iter, seed=config.seed, index=index, group=group
    )
    labels, _ = assign_to_nearest(x, centroids, spherical=True)
    sums, sizes = cluster_sums(x, labels, n, group)
    return (sums[sizes > 0] / sizes[sizes > 0].unsqueeze(1)).float()


@stage("retrieval")
def select_texts(texts: Tensor, centers: Tensor, config: CAEConfig) -> Tensor:
    """Eq. 2-3: the union over centers of the texts most probably theirs.

    Args:
        texts: (T, D) unit text embeddings of a bank, any float dtype.
        centers: (n, D) float32 from `semantic_centers`.
        config: gives `top_k` and the kind of retrieval.

    Returns:
        (M,) int64 indices into the bank, ascending, M at most n * top_k.
    """
    return retrieve(texts.to(centers.device), centers, top_k=config.top_k, mode=config.retrieval)
