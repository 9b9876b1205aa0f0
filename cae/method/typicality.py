"""Which texts are typical of a cluster, among selected ones.

Text j is typical of cluster k when the cluster sends much of its transport mass to it and other clusters send little.
With p(j|k) the mean of the row-normalised plan over the cluster's images and p(j) its mean over clusters,

    typicality(k, j) = p(j|k) log(p(j|k) / p(j)),

the text's share of the Kullback-Leibler divergence between the cluster and the average cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.kernels.exact import exact_products
from cae.kernels.products import inner_products
from cae.method.blocks import BLOCK_ROWS
from cae.method.fitted import SelectedTexts
from cae.utils.distributed import all_reduce_sum


def transport_mass(
    x: Tensor, labels: Tensor, texts: SelectedTexts, config: CAEConfig, group: ProcessGroup | None = None
) -> Tensor:
    """p(j|k): how each cluster's images spread over the texts, by the row-normalised plan.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        labels: (N,) int64 clusters.
        texts: M selected texts with their potentials.
        config: gives K and epsilon.
        group: the processes that share the images.

    Returns:
        (K, M) float32; rows sum to 1, or to 0 for a cluster without images.
    """
    mass = torch.zeros(config.n_clusters, len(texts.texts), dtype=torch.float64, device=x.device)
    # Cluster after cluster, so that a block holds few of them and costs no more for many.
    for rows in labels.argsort(stable=True).split(BLOCK_ROWS):
        with exact_products(x.device):
            scores = inner_products(x[rows].float(), texts.embeddings)
        plan = ((scores + texts.g) / config.epsilon).softmax(dim=1)
        clusters = labels[rows]
        here = clusters.unique_consecutive()
        # A matrix product, since index_add_ adds in no fixed order on CUDA.
        mass[here] += (here.unsqueeze(1) == clusters).to(plan) @ plan
    sizes = torch.bincount(labels, minlength=config.n_clusters)
    return (all_reduce_sum(mass, group) / all_reduce_sum(sizes, group).clamp_min(1).unsqueeze(1)).float()


def typicality(mass: Tensor, n: int | None = None) -> Tensor:
    """score(k, j) of the module's rule for p(j|k) = `mass` (K, M); same shape, 0 where there is no mass.

    The average is over the first n clusters, by default over all. A text that none of these has is typical of none.
    """
    average = mass[:n].mean(dim=0, keepdim=True)
    return (torch.special.xlogy(mass, mass) - torch.special.xlogy(mass, average)).nan_to_num(posinf=0)
