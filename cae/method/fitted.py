"""What a fit leaves behind: a small state that labels any new image, and its form on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cae.config import CAEConfig
from cae.method.hierarchy import Hierarchy
from cae.method.partition import Partition
from cae.utils.checksums import check_kinds, is_version, load_json, tensors_hash
from cae.utils.files import committing, dump_json, tidy

FORMAT_VERSION = 4
"""Version 2 added a checksum, 3 the metric of the clusters, 4 the tree of groups."""
_TENSORS_FILE = "model.safetensors"
_CONFIG_FILE = "config.json"
_NETWORK = "network."


class ModelError(ValueError):
    """A model folder or checkpoint cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class SelectedTexts:
    """The texts of one bank that the images' centers selected (Eq. 3), with their transport potentials.

    Attributes:
        texts: M strings.
        embeddings: (M, D) float32 unit rows, U or V of the paper.
        g: (M,) float32 column potentials of Eq. 10, zeros for `balance=0`.

    Raises:
        ValueError: the three differ in length.
    """

    texts: list[str]
    embeddings: Tensor
    g: Tensor

    def __post_init__(self) -> None:
        """Catch files whose parts do not belong together."""
        if not len(self.texts) == len(self.embeddings) == len(self.g):
            raise ValueError(f"{len(self.texts)} texts, {len(self.embeddings)} embeddings, {len(self.g)} potentials")


@dataclass(frozen=True)
class ClusterDescription:
    """What a cluster is about.

    Attributes:
        id: its label.
        name: short and unlike any other cluster's.
        gloss: the dictionary's definition of the name, empty where the corpus has none.
        size: images of the fit in it.
        nouns: its three most typical nouns, best first.
        captions: its three most typical captions, best first.
    """

    id: int
    name: str
    gloss: str
    size: int
    nouns: list[str]
    captions: list[str]


CLUSTER_FIELDS: dict[str, Any] = get_type_hints(ClusterDescription)
"""Names and types of the fields above."""


@dataclass(frozen=True)
class FittedCAE:
    """The fitted method: all that labelling an image needs.

    Attributes:
        config: the settings it was fitted with.
        n_images: N, the images it was fitted on.
        selected: texts by modality, in the order of `config.modalities`.
        means: (m, D) float32 modality means, the image first.
        partition: the clusters, of D or for concatenation m * D columns; without centroids where a network labels.
        clusters: K descriptions.
        provenance: encoder, corpora with hashes, versions; plain JSON values.
        method: `cae`, or the method of `cae.models.trained` that trained the network.
        network: the network's `state_dict`, empty for `cae`.
        hierarchy: the tree over the clusters, `config.n_clusters` the level of it that labels; None where a network
            labels, or for a state from before trees.
        nodes: a description of each of its nodes; `id` is the node's number.

    Examples:
        >>> from cae import SavedResult
        >>> fitted = SavedResult.load("cae-result").fitted
        >>> fitted.save("model")
        >>> FittedCAE.load("model").n_images
        30
    """

    config: CAEConfig
    n_images: int
    selected: dict[str, SelectedTexts]
    means: Tensor
    partition: Partition
    clusters: list[ClusterDescription]
    provenance: dict[str, Any] = field(default_factory=dict)
    method: str = "cae"
    network: dict[str, Tensor] = field(default_factory=dict)
    hierarchy: Hierarchy | None = None
    nodes: list[ClusterDescription] = field(default_factory=list)

    def cut(self, n: int) -> Self:
        """The same fit with n clusters: another level of its tree.

        Args:
            n: number of clusters, one of `hierarchy.levels`.

        Raises:
            ModelError: there is no tree, or it does not hold so many.
        """
        if self.hierarchy is None:
            why = "networks label" if self.network else "it was fitted before there were trees; fit it again"
            raise ModelError(f"the model has no tree of groups to cut: {why}")
        levels = self.hierarchy.levels
        if n not in levels:
            remedy = "ask for one of these, or fit again" if len(levels) > 1 else "fit again"
            raise ModelError(f"the tree of groups holds {self.hierarchy.held}, and not {n}; {remedy} with that many")
        clusters = [replace(self.nodes[node], id=i) for i, node in enumerate(self.hierarchy.nodes(n))]
        return replace(self, config=replace(self.config, n_clusters=n), clusters=clusters)

    def to(self, device: torch.device | str) -> Self:
        """The same state with its tensors on `device`."""
        return self._from_parts({key: value.to(device) for key, value in self._tensors().items()}, self._plain())

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that `torch.load(weights_only=True)` reads it; with a checksum."""
        tensors, plain = self._tensors(), self._plain()
        return {
            "format_version": FORMAT_VERSION,
            "tensors": tensors,
            "plain": plain,
            "sha256": tensors_hash(tensors, plain),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `state_dict`.

        Raises:
            ModelError: written by a newer version, or not such a state.
        """
        version = state.get("format_version")
        if not is_version(version):
            raise ModelError("this is not a fitted CAE: it has no format_version")
        if version > FORMAT_VERSION:
            raise ModelError(
                f"the model has format {version}, this version of cae reads up to {FORMAT_VERSION}; upgrade cae"
            )
        try:
            tensors, plain = state["tensors"], state["plain"]
            if version > 1 and state["sha256"] != tensors_hash(tensors, plain):
                raise ValueError("its checksum differs")
            fitted = cls._from_parts(tensors, plain)
            fitted._check()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the fitted CAE is incomplete or damaged ({error!r}); fit it again") from error
        return fitted

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`, both or neither (`cae.utils.files.committing`)."""
        state = self.state_dict()
        tensors, plain = state.pop("tensors"), state.pop("plain")
        with committing(Path(folder)) as draft:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, draft / _TENSORS_FILE)
            dump_json({**state, **plain}, draft / _CONFIG_FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a folder written by `save`.

        Raises:
            ModelError: no such folder, a file missing or damaged, or a newer format.
        """
        folder = Path(folder)
        tidy(folder)
        missing = [name for name in (_CONFIG_FILE, _TENSORS_FILE) if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} is not a model folder: {' and '.join(missing)} missing; give a result of `cae cluster`, or "
                "from Python the folder `model` in it, or what `save_pretrained` wrote"
            )
        try:
            plain = load_json(folder / _CONFIG_FILE)
            if not isinstance(plain, dict):
                raise ValueError(f"{_CONFIG_FILE} holds no object")
            version, sha256 = plain.pop("format_version", None), plain.pop("sha256", None)
            tensors = load_file(folder / _TENSORS_FILE)
        except (ValueError, SafetensorError, OSError) as error:
            raise ModelError(f"the model in {folder} cannot be read ({error}); fit it again") from error
        try:
            return cls.from_state_dict(
                {"format_version": version, "tensors": tensors, "plain": plain, "sha256": sha256}
            )
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"means": self.means, "centroids": self.partition.centroids}
        if self.partition.metric is not None:
            tensors["metric"] = self.partition.metric
        if self.hierarchy is not None:
            tensors |= {"leaf.prototypes": self.hierarchy.prototypes, "leaf.metric": self.hierarchy.metric}
        for modality, selected in self.selected.items():
            tensors[f"{modality}.embeddings"] = selected.embeddings
            tensors[f"{modality}.g"] = selected.g
        return tensors | {_NETWORK + key: value for key, value in self.network.items()}

    def _plain(self) -> dict[str, Any]:
        return {
            "config": {**asdict(self.config), "modalities": list(self.config.modalities)},
            "n_images": self.n_images,
            "texts": {modality: selected.texts for modality, selected in self.selected.items()},
            "clusters": [asdict(cluster) for cluster in self.clusters],
            "provenance": self.provenance,
            "method": self.method,
            "tree": None if self.hierarchy is None else self._tree(),
        }

    def _tree(self) -> dict[str, Any]:
        assert self.hierarchy is not None  # the caller has looked
        plain = {name: getattr(self.hierarchy, name) for name in ("n_clusters", "roots", "splits", "leaves")}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return {**lists, "nodes": [asdict(node) for node in self.nodes]}

    def _check(self) -> None:
        """Refuse a state whose fields have the right names but values of the wrong kind.

        Raises:
            LookupError, ValueError, TypeError, AttributeError: it has not.
        """
        for cluster in [*self.clusters, *self.nodes]:
            check_kinds(asdict(cluster), CLUSTER_FIELDS)
        check_kinds({"n_images": self.n_images, "provenance": self.provenance}, {"n_images": int, "provenance": dict})
        if not isinstance(self.method, str):
            raise ValueError(f"method is {self.method!r}")
        if list(self.selected) != list(self.config.modalities):
            raise ValueError(f"texts of {', '.join(self.selected)} for {', '.join(self.config.modalities)}")
        if len(self.clusters) != self.config.n_clusters:
            raise ValueError(f"{len(self.clusters)} clusters in place of {self.config.n_clusters}")
        width = self.means.shape[1]
        shapes: list[tuple[Tensor, tuple[int, ...]]] = [(self.means, (1 + len(self.selected), width))]
        for texts in self.selected.values():
            check_kinds({"texts": texts.texts}, {"texts": list[str]})
            shapes += [(texts.embeddings, (len(texts.texts), width)), (texts.g, (len(texts.texts),))]
        centroids, metric = self.partition.centroids, self.partition.metric
        if not self.network:
            fitted = self.config.n_clusters if self.hierarchy is None else self.hierarchy.n_clusters
            shapes.append((centroids, (fitted, centroids.shape[1])))
        if self.hierarchy is not None:
            tree = self.hierarchy
            if self.config.n_clusters not in tree.levels or len(self.nodes) != tree.n_nodes:
                raise ValueError(
                    f"{len(self.nodes)} groups in a tree of {tree.n_nodes}, cut at {self.config.n_clusters}"
                )
            shapes.append((tree.prototypes, (len(tree.leaves), centroids.shape[1])))
            shapes.append((tree.metric, (centroids.shape[1], tree.metric.shape[1])))
        if metric is not None:
            shapes.append((metric, (centroids.shape[1], metric.shape[1])))
        for tensor, shape in shapes:
            if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError(f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)} in place of numbers {shape}")

    @classmethod
    def _from_parts(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Self:
        # Before `clustering` was a setting, clusters came from k-means.
        config = CAEConfig(**{"clustering": "kmeans", **plain["config"]})
        metric, tree = tensors.get("metric"), plain.get("tree")
        return cls(
            config=config,
            n_images=plain["n_images"],
            selected={
                modality: SelectedTexts(texts, tensors[f"{modality}.embeddings"], tensors[f"{modality}.g"])
                for modality, texts in plain["texts"].items()
            },
            means=tensors["means"],
            partition=Partition(tensors["centroids"], metric, spherical=metric is None and config.spherical),
            clusters=[ClusterDescription(**cluster) for cluster in plain["clusters"]],
            provenance=plain["provenance"],
            method=plain.get("method", "cae"),
            network={key.removeprefix(_NETWORK): tensors[key] for key in tensors if key.startswith(_NETWORK)},
            hierarchy=None if tree is None else _hierarchy(tree, tensors),
            nodes=[] if tree is None else [ClusterDescription(**node) for node in tree["nodes"]],
        )


def _hierarchy(tree: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Hierarchy:
    check_kinds(tree, {"n_clusters": int, "roots": int, "splits": list, "leaves": list})
    return Hierarchy(
        tree["n_clusters"],
        tree["roots"],
        tuple(tree["splits"]),
        tuple(tree["leaves"]),
        tensors["leaf.prototypes"],
        tensors["leaf.metric"],
    )
