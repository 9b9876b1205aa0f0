"""Names for clusters, and the texts that are typical of them.

Typical texts come out of those that the method selected: text j is typical of cluster k when the cluster sends much of
its transport mass to it and other clusters send little. With p(j|k) the mean of the row-normalised plan over the
cluster's images and p(j) its mean over clusters,

    typicality(k, j) = p(j|k) log(p(j|k) / p(j)),

the text's share of the Kullback-Leibler divergence between the cluster and the average cluster.

A name has to be a word that people would use, too, and the selected nouns are as often "barnacle goose" as "bird". So
names come out of the whole bank: what sets the cluster apart, plus how common the noun is, plus how typical its kind is
of the cluster. With m_k the cluster's mean image and m the mean of those,

    score(k, j) = u_j.(m_k - m) / s + COMMONNESS log(1 + f_j) + KIND typicality(k, kinds of j),

s the standard deviation of the products and f_j the number of captions (or glosses) with noun j in them. The last term
is the typicality above of all texts that are noun j or a kind of it (`cae.text.taxonomy`), taken as one text. It finds
the level of a name: of a hundred breeds each has a hundredth of the mass and "dog" has all of it; where all is one
breed, other clusters have their share of "dog", but not of the breed. Names are the one-to-one choice with the largest
total score (Hungarian method), so no two clusters share one. benchmarks/results/naming.md measures this.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array, eye_array
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import CAEConfig
from cae.method.blocks import BLOCK_ROWS, CHUNK_ROWS
from cae.method.fitted import ClusterDescription, SelectedTexts
from cae.method.hierarchy import Hierarchy
from cae.method.kmeans import cluster_sums
from cae.text import TextBank
from cae.text.corpora import load_corpus
from cae.text.taxonomy import Taxonomy, bare
from cae.utils.distributed import all_reduce_sum
from cae.utils.progress import stage

TEXTS_PER_CLUSTER = 3
N_REPRESENTATIVES = 9
"""Images that stand for a cluster."""

COMMONNESS = 0.2
"""Standard deviations of likeness that a noun e times as common makes up for. The best of 0.1, 0.2 and 0.4 on the demo
and on the scenes with the lite encoder; CIFAR-10 was not looked at for it."""

KIND = 0.7
"""Standard deviations of likeness for a nat of typicality of a noun's kinds. With CLIP ViT-B/32, names of Caltech-101's
classes and of 25 coarse groups of ImageNet's get better up to 0.7 and stay so up to 1; above 0.7 the lite encoder's
names for the demo become too general."""

_LAST_RESORT = 1000.0
"""What a name that should not be taken loses: more than scores differ by."""

SHORTEST = 3
"""Minimum length of a noun that is counted. Shorter nouns, such as "a" and "or", are other words in most texts."""

CANDIDATES = 50
"""Nouns of each cluster among which names are chosen; the best choice is among them for up to so many clusters."""

_WORD = re.compile(r"\w+(?:['-]\w+)*")


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
        config: gives K, epsilon and which modality names: nouns, or captions where there are no nouns.
        group: the processes that share the images; all get the same descriptions.
    """
    mass = {modality: transport_mass(x, labels, texts, config, group) for modality, texts in selected.items()}
    sums, sizes = cluster_sums(x, labels, config.n_clusters, group)
    images, bank = (sums / sizes.unsqueeze(1)).float(), banks[config.modalities[0]]
    scores = name_scores(images, bank, banks.get("caption"), mass.get("noun"), selected.get("noun"))
    names = assign_names(scores, bank.texts)
    return _described(names, images, sizes, mass, selected, banks, config)


@stage("naming")
def describe_tree(
    x: Tensor,
    leaf: Tensor,
    tree: Hierarchy,
    selected: Mapping[str, SelectedTexts],
    banks: Mapping[str, TextBank],
    config: CAEConfig,
    group: ProcessGroup | None = None,
) -> tuple[list[ClusterDescription], list[ClusterDescription]]:
    """Describe the K clusters of a fit, as `describe_clusters`, and all groups in the tree over them.

    The clusters have the names that they have without a tree; each other group has the best that is left. A group above
    clusters is not called after a kind of what one of them is called after, as a computer above a device. The images
    are looked at once: what is known of a group is the sum of what is known of its leaves.

    Args:
        x: (N, D) float32 or float16 unit image embeddings; with `group`, only this rank's rows.
        leaf: (N,) int64, the leaf of each image.
        tree: the tree over the clusters.
        selected: the selected texts and their potentials, by modality.
        banks: the banks they come from, which know the glosses.
        config: gives K, epsilon and which modality names.
        group: the processes that share the images; all get the same descriptions.

    Returns:
        K descriptions of the clusters, and one of each node, whose `id` is its number.
    """
    n_leaves = len(tree.leaves)
    by_leaf = replace(config, n_clusters=n_leaves)
    mass = {modality: transport_mass(x, leaf, texts, by_leaf, group) for modality, texts in selected.items()}
    sums, sizes = cluster_sums(x, leaf, n_leaves, group)
    fitted = tree.nodes(tree.n_clusters)
    coarse = sorted({step for node in fitted for step in tree.path(node)} - set(fitted))
    fine = sorted(set(range(tree.n_nodes)) - set(fitted) - set(coarse))
    nodes = [*fitted, *coarse, *fine]
    inside = torch.zeros(len(nodes), n_leaves, dtype=torch.float64, device=x.device)
    for i, node in enumerate(nodes):
        inside[i, tree.members(node)] = 1
    sums, n = inside @ sums, (inside @ sizes.double()).round()
    share = inside * sizes / n.clamp_min(1).unsqueeze(1)
    mass = {modality: (share @ values.double()).float() for modality, values in mass.items()}
    images, bank = (sums / n.unsqueeze(1)).float(), banks[config.modalities[0]]
    scores = name_scores(images, bank, banks.get("caption"), mass.get("noun"), selected.get("noun"), len(fitted))
    names = assign_names(scores[: len(fitted)], bank.texts)
    above = inside[len(fitted) : len(fitted) + len(coarse)] @ inside[: len(fitted)].T > 0
    groups, nouns = kinds_of_names_inside(above.cpu(), names, bank.texts)
    scores[len(fitted) + groups, nouns] -= _LAST_RESORT
    # Name the groups above first: few nouns fit a coarse group.
    for others in (coarse, fine):
        taken = set(names)
        free = [j for j, text in enumerate(bank.texts) if text not in taken]
        if len(free) < len(others):
            names += [_called_after_others(tree, node, dict(zip(fitted, names, strict=False))) for node in others]
        elif others:
            rows = scores[len(names) : len(names) + len(others)]
            names += assign_names(rows[:, free], [bank.texts[j] for j in free])
    found = _described(names, images, n.long(), mass, selected, banks, config, len(fitted))
    described = {node: replace(cluster, id=node) for node, cluster in zip(nodes, found, strict=True)}
    return found[: len(fitted)], [described[node] for node in range(tree.n_nodes)]


def kinds_of_names_inside(above: Tensor, names: Sequence[str], nouns: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pairs of a group and a noun that is a kind, in some sense of both, of the name of a cluster inside the group.

    Args:
        above: (G, K) bool, the clusters inside each group.
        names: K names of the clusters.
        nouns: T nouns.

    Returns:
        The groups and the nouns of all pairs, (P,) int64 each.
    """
    of_names, of_nouns = Taxonomy.of(names), Taxonomy.of(nouns)
    strictly_above = of_nouns.above - eye_array(of_nouns.above.shape[0], dtype=np.float32)
    kinds = of_names.senses @ (of_nouns.senses @ strictly_above).T
    groups, found = (csr_array(above.numpy().astype(np.float32)) @ kinds).nonzero()
    return torch.from_numpy(groups.astype(np.int64)), torch.from_numpy(found.astype(np.int64))


def _called_after_others(tree: Hierarchy, node: int, names: Mapping[int, str]) -> str:
    """The name of a group where there are too few nouns: after the clusters, by node, that it holds or is a part of."""
    around = [step for step in tree.path(node) if step in names]
    if around:
        return f"{names[around[0]]}, part {node}"
    first, second, *more = (name for each, name in names.items() if node in tree.path(each))
    return f"{first}, {second} and {len(more)} more" if more else f"{first} and {second}"


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
    """Descriptions of K groups that have names: mean images (K, D), sizes (K,) and `transport_mass` by modality.

    What is typical of one it has more than the first n have on average, by default than all.
    """
    typical = {
        modality: [
            [selected[modality].texts[j] for j in row]
            for row in typicality(values, n).topk(min(TEXTS_PER_CLUSTER, values.shape[1])).indices.tolist()
        ]
        for modality, values in mass.items()
    }
    glosses = fitting_glosses(names, images, banks[config.modalities[0]], banks.get("caption"), n)
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
    for rows, cluster in zip(x.split(BLOCK_ROWS), labels.split(BLOCK_ROWS), strict=True):
        plan = ((rows.float() @ texts.embeddings.T + texts.g) / config.epsilon).softmax(dim=1)
        # A matrix product, since index_add_ adds in no fixed order on CUDA.
        mass += torch.nn.functional.one_hot(cluster, config.n_clusters).to(plan).T @ plan
    sizes = torch.bincount(labels, minlength=config.n_clusters)
    return (all_reduce_sum(mass, group) / all_reduce_sum(sizes, group).clamp_min(1).unsqueeze(1)).float()


def typicality(mass: Tensor, n: int | None = None) -> Tensor:
    """score(k, j) of the module's rule for p(j|k) = `mass` (K, M); same shape, 0 where there is no mass.

    The average is over the first n clusters, by default over all. A text that none of these has is typical of none.
    """
    average = mass[:n].mean(dim=0, keepdim=True)
    return (torch.special.xlogy(mass, mass) - torch.special.xlogy(mass, average)).nan_to_num(posinf=0)


def name_scores(
    images: Tensor,
    bank: TextBank,
    captions: TextBank | None,
    mass: Tensor | None = None,
    selected: SelectedTexts | None = None,
    n: int | None = None,
) -> Tensor:
    """score(k, j) of the module's rule for names.

    Args:
        images: (K, D) float32, the mean image of each cluster; NaN for one without images.
        bank: T nouns.
        captions: the caption bank, if there is one.
        mass: (K, M) `transport_mass` of the selected nouns, if some were selected.
        selected: these nouns.
        n: compare with the first n only; with all by default.

    Returns:
        (K, T) float32 on the CPU.
    """
    images = images.cpu().nan_to_num()
    contrast = images - images[:n].mean(dim=0)
    likeness = torch.cat([contrast @ rows.float().T for rows in bank.embeddings.split(CHUNK_ROWS)], dim=1)
    spread = likeness[:n].std().clamp_min(torch.finfo(likeness.dtype).tiny)
    score = likeness / spread + COMMONNESS * commonness(bank, captions).log1p()
    return score if mass is None or selected is None else score + KIND * kind_typicality(mass, selected, bank, n)


def kind_typicality(mass: Tensor, selected: SelectedTexts, bank: TextBank, n: int | None = None) -> Tensor:
    """Typicality of the kinds of each noun: its own mass and that of all below it, in the sense where that is largest.

    Args:
        mass: (K, M) `transport_mass`.
        selected: the M nouns that it is of. The mass of one that means several things is shared out equally.
        bank: T nouns.
        n: as in `typicality`.

    Returns:
        (K, T) float32 on the CPU, 0 for nouns that the taxonomy does not know.
    """
    below, nouns = Taxonomy.of(selected.texts), Taxonomy.of(bank.texts).senses
    n_senses = np.maximum(below.senses.sum(axis=1), 1).astype(np.float32)
    of_synsets = mass.cpu().numpy() / n_senses @ below.senses
    of_kinds = typicality(torch.from_numpy(of_synsets @ below.above), n).numpy()
    known = np.diff(nouns.indptr) > 0
    found = np.zeros((len(mass), len(bank.texts)), dtype=np.float32)
    if known.any():
        found[:, known] = np.maximum.reduceat(of_kinds[:, nouns.indices], nouns.indptr[:-1][known], axis=1)
    return torch.from_numpy(found)


def commonness(bank: TextBank, captions: TextBank | None) -> Tensor:
    """f_j: in how many captions each noun occurs, in singular or plural.

    Args:
        bank: T nouns. Nouns of more than two words are not counted.
        captions: the caption bank; where there is none the nouns' own glosses are counted in, or else ImageNet-22k's.

    Returns:
        (T,) float32.
    """
    nouns = [bare(noun) for noun in bank.texts]
    counted = {noun for noun in nouns if len(noun) >= SHORTEST}
    found: Counter[str] = Counter()
    texts = captions.texts if captions else list(chain.from_iterable(bank.glosses or ()))
    for text in texts or load_corpus("caption", "glosses").texts:
        words = _WORD.findall(text.lower())
        phrases = {*words, *(" ".join(pair) for pair in pairwise(words))}
        found.update(counted & (phrases | {phrase.removesuffix("s") for phrase in phrases}))
    return torch.tensor([found[noun] for noun in nouns], dtype=torch.float32)


def assign_names(score: Tensor, nouns: Sequence[str]) -> list[str]:
    """One noun per cluster, no noun twice, the total of `score` (K, M) as large as possible.

    With fewer nouns than clusters the clusters left over are called after their number.
    """
    candidates = score.topk(min(CANDIDATES, score.shape[1])).indices.unique()
    clusters, chosen = linear_sum_assignment(score[:, candidates].cpu().numpy(), maximize=True)
    names = [f"cluster {k}" for k in range(len(score))]
    for k, j in zip(clusters, candidates[chosen].tolist(), strict=True):
        names[k] = nouns[j]
    return names


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
