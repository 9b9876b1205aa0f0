"""Names for clusters and for the groups of a tree over them, and the texts that are typical of them.

Names are chosen by `cae.method.names` out of the whole bank, typical texts by `cae.method.typicality` out of selected
ones. What the method selects depends on its random centers; the texts that describe a tree are selected by the mean
images of its leaves, so that groups which another seed finds, too, have the same names there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array, eye_array
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from cae.config import CAEConfig
from cae.method.fitted import ClusterDescription, SelectedTexts
from cae.method.hierarchy import Hierarchy
from cae.method.kmeans import cluster_sums
from cae.method.names import HOLDS_IN_PART, PARTS, GroupName, NameScores, cluster_names, name_groups, name_scores
from cae.method.stages import potentials, select_for
from cae.method.typicality import spread_mass, typicality
from cae.text import TextBank
from cae.text.taxonomy import Taxonomy
from cae.utils.progress import stage

TEXTS_PER_CLUSTER = 3
_NO_DIRECTION = 1e-6
"""Length of the sum of images below which they cancel out, and any direction is as good."""


@stage("naming")
def describe_clusters(
    x: Tensor,
    labels: Tensor,
    selected: Mapping[str, SelectedTexts],
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    group: ProcessGroup | None = None,
) -> list[ClusterDescription]:
    """Names, glosses, typical texts and sizes of the K clusters.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        labels: (N,) int64 clusters.
        selected: the selected texts and their potentials, by modality.
        banks: the banks they come from, which know the glosses.
        config: gives K and which modality names: nouns, or captions where there are no nouns.
        group: the processes that share the images; all get the same descriptions.
    """
    mass = {modality: spread_mass(x, labels, texts, config.n_clusters, group) for modality, texts in selected.items()}
    sums, sizes = cluster_sums(x, labels, config.n_clusters, group)
    images, bank = (sums / sizes.unsqueeze(1)).float(), _bank_of_names(banks, config)
    scores = name_scores(images, bank, banks.get("caption"), mass.get("noun"), selected.get("noun"))
    names = [str(name) for name in cluster_names(scores, bank.texts)]
    return _described(names, images, sizes, mass, selected, banks, config)


@stage("naming")
def describe_tree(
    x: Tensor,
    leaf: Tensor,
    tree: Hierarchy,
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    group: ProcessGroup | None = None,
) -> tuple[list[ClusterDescription], list[ClusterDescription]]:
    """Describe the K clusters of a fit, as `describe_clusters`, and all groups in the tree over them.

    The clusters have the names that they have without a tree; each other group has the best that is left
    (`tree_names`). The images are looked at once: what is known of a group is the sum of what is known of its leaves.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        leaf: (N,) int64, the leaf of each image.
        tree: the tree over the clusters.
        banks: the texts of each modality, and their glosses.
        config: gives K, epsilon and which modality names: nouns, or captions where there are no nouns.
        group: the processes that share the images; all get the same descriptions.

    Returns:
        K descriptions of the clusters, and one of each node, whose `id` is its number.
    """
    n_leaves = len(tree.leaves)
    sums, sizes = cluster_sums(x, leaf, n_leaves, group)
    selected = texts_of_groups(sums, sizes, banks, config)
    mass = {modality: spread_mass(x, leaf, texts, n_leaves, group) for modality, texts in selected.items()}
    nodes = [node for part in _around_the_fit(tree) for node in part]
    inside = tree.contains(tree.leaves)[nodes]
    n = _product(inside, sizes)
    images = (_product(inside, sums) / n.unsqueeze(1)).float()
    share = inside.multiply(sizes.cpu().numpy()).multiply(1 / n.clamp_min(1).unsqueeze(1).numpy()).tocsr()
    mass = {modality: _product(share, values).float() for modality, values in mass.items()}
    bank = _bank_of_names(banks, config)
    k = tree.n_clusters
    scores = name_scores(images, bank, banks.get("caption"), mass.get("noun"), selected.get("noun"), k)
    names = tree_names(tree, scores, bank.texts, n.tolist())
    found = _described(names, images, n.long(), mass, selected, banks, config, k)
    described = {node: replace(cluster, id=node) for node, cluster in zip(nodes, found, strict=True)}
    return found[:k], [described[node] for node in range(tree.n_nodes)]


def texts_of_groups(
    sums: Tensor, sizes: Tensor, banks: Mapping[str, TextBank], config: CAEConfig
) -> dict[str, SelectedTexts]:
    """The texts that the directions of groups select (Eq. 2-3), and their potentials between these (Eq. 4-6).

    Args:
        sums: (L, D) float64, the summed embeddings of each group.
        sizes: (L,) images of each; one without any selects nothing.
        banks: the texts of each modality.
        config: gives the modalities, and the settings of retrieval and transport.
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0].double()
    centers = normalize(sums, dim=1).float()
    centers[sums.norm(dim=1) < _NO_DIRECTION] = centers.new_ones(sums.shape[1]) / sums.shape[1] ** 0.5
    return potentials(centers, select_for(centers, banks, config), config, weights=sizes / sizes.sum())


def _product(groups: csr_array, values: Tensor) -> Tensor:
    """Sums over what each group holds, float64 on the CPU."""
    return torch.from_numpy(groups @ values.double().cpu().numpy())


def _bank_of_names(banks: Mapping[str, TextBank], config: CAEConfig) -> TextBank:
    """Nouns, or captions where there are no nouns."""
    return banks["noun" if "noun" in config.modalities else "caption"]


def _around_the_fit(tree: Hierarchy) -> tuple[list[int], list[int], list[int]]:
    """The nodes that are clusters of the fit, those above them and those below."""
    clusters = tree.nodes(tree.n_clusters)
    above = sorted({step for node in clusters for step in tree.path(node)} - set(clusters))
    return clusters, above, sorted(set(range(tree.n_nodes)) - set(clusters) - set(above))


def tree_names(tree: Hierarchy, scores: NameScores, nouns: Sequence[str], sizes: Sequence[float]) -> list[str]:
    """Names of all groups of a tree, no two alike. First the clusters choose, then groups above, then groups below.

    A group above is called after a noun that holds for a part of each cluster inside and is no kind of what one of them
    is called: animals with buildings are no "animal", however many they are. One below is not called after what its
    cluster's name is a kind of: a part of the mammals is no "animal". Where no noun holds, a group above is called
    after the largest clusters inside, "mixed: dog, cat and 3 more", and one below after what it is a part of, "dog 2".

    Args:
        tree: the tree.
        scores: scores of T nouns, and shares, for all groups: the clusters of the fit, those above, those below.
        nouns: the nouns.
        sizes: of the groups, in this order.
    """
    clusters, above, below = _around_the_fit(tree)
    own, coarse, fine = (
        NameScores(*parts)
        for parts in zip(*(each.split([len(clusters), len(above), len(below)]) for each in scores), strict=True)
    )
    named = dict(zip(clusters, cluster_names(own, nouns), strict=True))
    names = {node: str(name) for node, name in named.items()}
    inside = tree.contains(clusters)[np.array(above, dtype=np.int64)]  # none is above of a fit with two clusters
    kinds, wider = kinds_of_names(list(names.values()), nouns)
    _exclude(coarse, inside @ kinds)
    foreign = _foreign_to_some(tree, dict(zip(clusters, own.share < HOLDS_IN_PART, strict=True)), above)
    for share, node in zip(coarse.share, above, strict=True):
        share[foreign[node]] = 0
    for row, (node, name) in enumerate(zip(above, name_groups(coarse, nouns, set(names.values())), strict=True)):
        by_size = sorted(inside.indices[inside.indptr[row] : inside.indptr[row + 1]], key=lambda i: (-sizes[i], i))
        names[node] = name or _mixed_name([named[clusters[i]].parts[0] for i in by_size])
    around = tree.contains(below).T[:, clusters]
    _exclude(fine, around @ wider)
    found = dict(zip(below, name_groups(fine, nouns, set(names.values())), strict=True))
    named |= {node: GroupName((name,)) for node, name in found.items() if name}
    names |= {node: str(named[node]) if name else _part_name(tree, node, named) for node, name in found.items()}
    return [names[node] for node in (*clusters, *above, *below)]


def _foreign_to_some(tree: Hierarchy, foreign: Mapping[int, Tensor], above: Sequence[int]) -> dict[int, Tensor]:
    """Which nouns hold for no part of some cluster inside each group, (T,) bool by the group's node.

    Args:
        tree: the tree.
        foreign: the same of each cluster.
        above: the nodes above the clusters, in ascending order.
    """
    found = dict(foreign)
    for node in reversed(above):  # a group has a smaller number than its parts
        part = tree.roots + 2 * tree.splits.index(node)
        found[node] = found[part] | found[part + 1]
    return found


def _exclude(scores: NameScores, nouns: csr_array) -> None:
    """Let nouns, not 0 in a sparse (K, T), be no names of their groups."""
    groups, excluded = (torch.from_numpy(places.astype(np.int64)) for places in nouns.nonzero())
    scores.share[groups, excluded] = 0


def _mixed_name(inside: Sequence[str]) -> str:
    """A name for a group of clusters after theirs, the largest first."""
    more = len(inside) - PARTS
    return str(GroupName(tuple(inside[:PARTS]), mixed=True)) + (f" and {more} more" if more > 0 else "")


def _part_name(tree: Hierarchy, node: int, named: Mapping[int, GroupName]) -> str:
    """A name for a part of a group, after the nearest one around that has a noun: "dog 1.2"."""
    path = tree.path(node)
    at = max(i for i, step in enumerate(path) if step in named)
    around = named[path[at]]
    name = GroupName(around.parts[:1], around.mixed)
    return f"{name} {'.'.join(str(1 + (step - tree.roots) % 2) for step in path[at + 1 :])}"


def kinds_of_names(names: Sequence[str], nouns: Sequence[str]) -> tuple[csr_array, csr_array]:
    """Which nouns are kinds of names, and which names are kinds of nouns, in some sense of both and strictly.

    Args:
        names: K names.
        nouns: T nouns.

    Returns:
        Two sparse (K, T), not 0 where the noun is a kind of the name, and where the name is a kind of the noun.
    """
    of_names, of_nouns = Taxonomy.of(names), Taxonomy.of(nouns)
    strictly_above = of_nouns.above - eye_array(of_nouns.above.shape[0], dtype=np.float32)
    kinds = of_names.senses @ (of_nouns.senses @ strictly_above).T
    return kinds.tocsr(), (of_names.senses @ strictly_above @ of_nouns.senses.T).tocsr()


def _described(
    names: Sequence[str],
    images: Tensor,
    sizes: Tensor,
    mass: Mapping[str, Tensor],
    selected: Mapping[str, SelectedTexts],
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    n: int | None = None,
) -> list[ClusterDescription]:
    """Descriptions of K groups that have names: mean images (K, D), sizes (K,) and `spread_mass` by modality.

    What is typical of one it has more than the first n have on average, by default than all.
    """
    typical = {
        modality: [
            [selected[modality].texts[j] for j in row]
            for row in typicality(values, n).topk(min(TEXTS_PER_CLUSTER, values.shape[1])).indices.tolist()
        ]
        for modality, values in mass.items()
    }
    glosses = fitting_glosses(names, images, _bank_of_names(banks, config), banks.get("caption"), n)
    return [
        ClusterDescription(
            id=k,
            name=names[k],
            gloss=glosses[k],
            size=int(sizes[k]),
            nouns=typical["noun"][k] if "noun" in typical else [],
            captions=typical["caption"][k] if "caption" in typical else [],
        )
        for k in range(len(names))
    ]


def fitting_glosses(
    names: Sequence[str], images: Tensor, bank: TextBank, captions: TextBank | None, n: int | None = None
) -> list[str]:
    """The definition of each name in the sense that its images show: a crane that flies, or one that lifts.

    Glosses are often the caption bank themselves and so embedded already. Then the sense most similar to the images
    wins, unless other clusters are more similar to it: of a forest called bark, a sailing ship is no definition. If
    glosses are not embedded, it is the first, which WordNet orders to be the most frequent.

    Args:
        names: K names.
        images: (K, D) float32, the mean image of each cluster; NaN for one without images.
        bank: the bank that the names come from.
        captions: the caption bank, if there is one.
        n: compare with the first n clusters only; with all by default.

    Returns:
        K glosses, "" where the corpus has none that fits.
    """
    if bank.glosses is None:
        return [""] * len(names)
    wanted = set(names)
    senses = {text: glosses for text, glosses in zip(bank.texts, bank.glosses, strict=True) if text in wanted}
    wanted = {gloss for glosses in senses.values() for gloss in glosses}
    rows = {} if captions is None else {text: row for row, text in enumerate(captions.texts) if text in wanted}
    images = images.nan_to_num()
    average = images[:n].mean(dim=0)
    fitting = []
    for name, image in zip(names, images, strict=True):
        glosses = senses.get(name, ())
        embedded = [gloss for gloss in glosses if gloss in rows]
        if captions is not None and embedded:
            vectors = captions.embeddings[[rows[gloss] for gloss in embedded]].to(image)
            best = int((vectors @ image).argmax())
            fitting.append(embedded[best] if vectors[best] @ image >= vectors[best] @ average else "")
        else:
            fitting.append(glosses[0] if glosses else "")
    return fitting
