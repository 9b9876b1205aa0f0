r"""MCA (Qiu et al. 2024, arXiv 2401.11740), in OUR READING: not a reproduction.

Only the abstract and summaries of the paper were at hand: a smaller semantic space chosen by WordNet's hierarchy, three
alignments of images and texts (instance, prototype, semantic), and pseudo-labels from the aligned space that train the
clustering. Everything below that makes this a program was chosen here:

*Semantic space.* Nouns are selected as by the preset `tac`. Of those, a noun is dropped as too general if another
selected noun lies below it in WordNet (it is a hypernym of the other), and as redundant if its text embedding has a
cosine of at least `DUPLICATE` with one that the images prefer, that is, that more of their mass goes to. A noun with
less mass than one image has is dropped as too specific for these images. WordNet's order is known for the corpus
`wordnet` only, where it came from NLTK; with other corpora the two other rules remain.

*Aligned space.* Residual linear adapters f on images and g on texts that start as the identity; x' = f(x), u' = g(u),
similarities s_ij = x'_i·u'_j / tau. The start is the training-free space: clusters are k-means on image and noun
counterpart side by side, and an image's best texts are the `BEST` that its frozen embedding prefers.

*Instance alignment.* Each image against its best texts among all (`losses.instance_alignment`).

*Prototype alignment.* A cluster's text prototype t_k is the mean of the texts u', weighted by the mass p(j|k) that the
cluster's images send them; each image against the prototype of its cluster among all K: -log softmax_k(x'_i·t_k / tau).

*Semantic alignment.* Each image's distribution over the texts, softmax_j(s_ij), against that of a random neighbour
(averaged with its own prototype's p(j|k)), the targets held fixed (`losses.semantic_alignment`).

*Cluster head.* TAC's head on x'; its pseudo-label is the nearest text prototype in the aligned space, counted only for
the half of the batch that is surest of it (1 - second / best probability). As in TAC, an image and its neighbour should
agree, and the entropy of the mean prediction is rewarded.

Clusters and p(j|k) are computed from the prototypes of the aligned space at the end of an epoch, once in `REFRESH`
steps: earlier, images have not come near their prototypes, and a cluster can lose them all. All terms have weight 1
but the entropy. One setting for all data; none was chosen by labels of image sets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cae.config import Preset
from cae.kernels import nearest
from cae.method.fitted import SelectedTexts
from cae.method.kmeans import kmeans
from cae.method.pipeline import top_texts
from cae.method.typicality import transport_mass
from cae.models.trained.heads import Adapter, cluster_head
from cae.models.trained.losses import balance, consistency, instance_alignment, semantic_alignment
from cae.models.trained.module import TrainedClustering
from cae.models.trained.neighbours import draw_neighbours, nearest_neighbours
from cae.models.trained.training_set import TrainingSet
from cae.text import TextBank

DUPLICATE = 0.95
BEST = 3
REFRESH = 50
TAU = 0.01
"""CLIP's own."""


class MCA(TrainedClustering):
    """Multi-level cross-modal alignment, our reading (see the module's docstring).

    Use and arguments as in `TrainedClustering`.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from cae.data import ImageFolderData
        >>> model = MCA(3, nouns="nouns.txt")
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, **quiet)
        >>> trainer.fit(model, datamodule=ImageFolderData("photos", num_workers=0))
        >>> len(model.fitted.clusters)
        3
    """

    method: ClassVar[str] = "mca"
    preset: ClassVar[Preset] = "tac"

    def __init__(self, n_clusters: int | Literal["auto"], **options: Any) -> None:
        super().__init__(n_clusters, **options)
        self._neighbours = self._best = self._clusters = self._mass = torch.empty(0)

    def build_heads(self, dim: int) -> None:
        """The two adapters and the cluster head."""
        self.heads["image"] = Adapter(dim)
        self.heads["text"] = Adapter(dim)
        self.heads["cluster"] = cluster_head(dim, self.config.n_clusters, self.config.seed)

    def network(self) -> nn.Module:
        """Image adapter and cluster head."""
        return nn.Sequential(self.heads["image"], self.heads["cluster"])

    def prepare_training(self, data: TrainingSet) -> TrainingSet:
        """Narrow down the semantic space; first clusters, best texts and neighbours."""
        texts = smaller_space(data.x, data.fitted.selected["noun"], data.banks["noun"], self.config.epsilon)
        data = replace(data, fitted=replace(data.fitted, selected={"noun": texts}))
        self._neighbours = nearest_neighbours(data.parts["image"], self.hparams["neighbours"])
        self._best = top_texts(data.x, texts, min(BEST, len(texts.texts)))
        side_by_side = normalize(torch.cat(list(data.parts.values()), dim=1), dim=1)
        config = self.config
        centroids = kmeans(
            side_by_side,
            config.n_clusters,
            spherical=True,
            n_init=config.n_init,
            max_iter=config.kmeans_iter,
            seed=config.seed,
        )
        self._clusters = nearest(side_by_side, centroids).labels
        self._mass = transport_mass(data.x, self._clusters, texts, config)
        return data

    def losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The three alignments and the cluster head's terms."""
        assert self.training_set is not None  # by setup
        data = self.training_set
        adapter, head = self.heads["image"], self.heads["cluster"]
        drawn = draw_neighbours(self._neighbours, rows, generator)
        x, x_neighbour = (adapter(data.parts["image"][part]) for part in (rows, drawn))
        u = self.heads["text"](data.fitted.selected["noun"].embeddings)
        clusters = self._clusters[rows]
        to_texts = x @ u.T / TAU
        to_prototypes = x @ text_prototypes(self._mass, u).T / TAU
        wanted = (x_neighbour @ u.T / TAU).softmax(dim=1) + self._mass[clusters]

        p, p_neighbour = self.gathered(head(x)), self.gathered(head(x_neighbour))
        guess = self.gathered(to_prototypes.detach().softmax(dim=1))
        terms = {
            "instance": instance_alignment(to_texts, self._best[rows]),
            "prototype": cross_entropy(to_prototypes, clusters),
            "semantic": semantic_alignment(to_texts, wanted / 2),
            "pseudo_label": pseudo_label_loss(p, guess),
            "consistency": consistency(p, p_neighbour),
            "balance": balance(p),
        }
        loss = sum(terms.values()) - (1 + self.hparams["balance_weight"]) * terms["balance"]
        return {"loss": loss, **terms}

    def on_train_epoch_end(self) -> None:
        """Compute clusters and p(j|k) again from the aligned space if it is time, and log as the base class does."""
        super().on_train_epoch_end()
        if self.global_step // REFRESH == (self.global_step - self.trainer.num_training_batches) // REFRESH:
            return
        assert self.training_set is not None  # by setup
        data = self.training_set
        with torch.no_grad():
            x = self.heads["image"](data.parts["image"])
            u = self.heads["text"](data.fitted.selected["noun"].embeddings)
            self._clusters = nearest(x, text_prototypes(self._mass, u)).labels
            aligned = SelectedTexts(data.fitted.selected["noun"].texts, u, u.new_zeros(len(u)))
            self._mass = transport_mass(x, self._clusters, aligned, replace(self.config, epsilon=TAU))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the clusters and p(j|k) that training goes on with."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["prototypes"] = {"clusters": self._clusters, "mass": self._mass}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._clusters, self._mass = (
            checkpoint["prototypes"][key].to(self._clusters.device) for key in ("clusters", "mass")
        )


def smaller_space(x: Tensor, texts: SelectedTexts, bank: TextBank, epsilon: float) -> SelectedTexts:
    """Without the nouns that are too general, too specific or redundant for these images.

    Args:
        x: (N, D) float32 unit image embeddings.
        texts: M selected nouns without potentials.
        bank: bank that they come from; `wordnet` brings its hierarchy.
        epsilon: temperature of the mass that images send to nouns.

    Returns:
        At least one of the nouns, in their order.
    """
    mass = torch.zeros(len(texts.texts), device=x.device)
    for rows in x.split(1024):
        mass += (rows @ texts.embeddings.T / epsilon).softmax(dim=1).sum(dim=0)
    wanted = mass >= 1  # less than one image in all
    if bank.corpus.name == "wordnet":
        below = has_hyponym(texts.texts)
        wanted &= ~below.to(x.device)
    alike = texts.embeddings @ texts.embeddings.T >= DUPLICATE
    order = mass.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    for j in order:
        if wanted[j] and not alike[j, kept].any():
            kept.append(j)
    chosen = sorted(kept or order[:1])
    return SelectedTexts([texts.texts[j] for j in chosen], texts.embeddings[chosen], texts.g[chosen])


def has_hyponym(nouns: list[str]) -> Tensor:
    """Which nouns have another of the nouns below them in WordNet, by their most frequent senses; (M,) bool."""
    from nltk.corpus import wordnet

    senses = [next(iter(wordnet.synsets(noun.replace(" ", "_"), "n")), None) for noun in nouns]
    above = {
        ancestor
        for sense in senses
        if sense is not None
        for ancestor in sense.closure(lambda synset: synset.hypernyms() + synset.instance_hypernyms())
    }
    return torch.tensor([sense in above for sense in senses])


def text_prototypes(mass: Tensor, u: Tensor) -> Tensor:
    """t_k = unit(sum_j p(j|k) u_j): (K, D) unit rows for `mass` (K, M) and texts (M, D)."""
    return normalize(mass @ u, dim=1)


def pseudo_label_loss(p: Tensor, guess: Tensor) -> Tensor:
    """Cross-entropy of the head with the aligned space's clusters, where that is surest.

    Args:
        p: (B, K) predictions of the head.
        guess: (B, K) probabilities of the clusters in the aligned space, without gradient.

    Returns:
        A scalar: the mean over the half of the batch with the smallest second / best probability.
    """
    best, second = guess.topk(2, dim=1).values.unbind(dim=1)
    sure = (second / best).argsort(stable=True)[: (len(p) + 1) // 2]
    labels = guess.argmax(dim=1)[sure]
    return torch.nn.functional.nll_loss(p[sure].clamp_min(1e-9).log(), labels)
