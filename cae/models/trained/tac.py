"""TAC's cluster heads (Li et al. 2024, arXiv 2310.11989), and the same training on CAE's richer counterparts.

A head per modality: on the image, and on each of its text counterparts. A step takes images and for each of them one
random neighbour in every modality; `losses.mutual_distillation` asks of two heads that they agree on an image, and that
either cuts the batch into clusters as the other does for the neighbours. TAC has two heads, image and noun; with more
the loss is the mean over all pairs, which for two is TAC's.

As in TAC's published code, neighbours go through the heads in a forward pass of their own, the image itself is not
among its neighbours, a column does not compete with itself, and labels are the arg-max of the image head.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cae.config import Preset
from cae.models.trained.heads import cluster_head
from cae.models.trained.losses import mutual_distillation
from cae.models.trained.module import TrainedClustering
from cae.models.trained.neighbours import draw_neighbours, nearest_neighbours
from cae.models.trained.schedule import MANY_CLUSTERS
from cae.models.trained.training_set import TrainingSet

TEMPERATURE, MANY_TEMPERATURE = 0.5, 5.0
"""TAC's temperatures for fewer than `MANY_CLUSTERS` clusters, and from there on."""


class TAC(TrainedClustering):
    """TAC with training: a head on images and one on noun counterparts, taught by each other's neighbourhoods.

    Use and further arguments as in `TrainedClustering`. Text selection and counterparts are the preset `tac`.

    Args:
        n_clusters: K, or "auto".
        temperature: temperature of the distillation; by default 0.5, or 5 from 100 clusters on.
        options: arguments of `TrainedClustering`.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from cae.data import ImageFolderData
        >>> model = TAC(3, nouns="nouns.txt")
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, **quiet)
        >>> trainer.fit(model, datamodule=ImageFolderData("photos", num_workers=0))
        >>> len(model.fitted.clusters)
        3
    """

    method: ClassVar[str] = "tac-heads"
    preset: ClassVar[Preset] = "tac"

    def __init__(self, n_clusters: int | Literal["auto"], *, temperature: float | None = None, **options: Any) -> None:
        super().__init__(n_clusters, **options)
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be a positive number, got {temperature!r}")
        self.save_hyperparameters({"temperature": temperature}, logger=False)
        self._neighbours: dict[str, Tensor] = {}

    @property
    def temperature(self) -> float:
        """Temperature of the distillation."""
        many = self.config.n_clusters >= MANY_CLUSTERS
        return self.hparams["temperature"] or (MANY_TEMPERATURE if many else TEMPERATURE)

    def build_heads(self, dim: int) -> None:
        """A head for the image and each text modality."""
        for i, name in enumerate(("image", *self.config.modalities)):
            seed = self.config.seed * (1 + len(self.config.modalities)) + i
            self.heads[name] = cluster_head(dim, self.config.n_clusters, seed)

    def network(self) -> nn.Module:
        """The image head."""
        return self.heads["image"]

    def prepare_training(self, data: TrainingSet) -> TrainingSet:
        """Find the neighbours of every image in every modality."""
        self._neighbours = {
            name: nearest_neighbours(part, self.hparams["neighbours"]) for name, part in data.parts.items()
        }
        return data

    def losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """TAC's loss and its terms, averaged over all pairs of heads."""
        assert self.training_set is not None  # by setup
        own, neighbour = {}, {}
        for name, part in self.training_set.parts.items():
            drawn = draw_neighbours(self._neighbours[name], rows, generator)
            own[name] = self.gathered(self.heads[name](part[rows]))
            neighbour[name] = self.gathered(self.heads[name](part[drawn]))
        pairs = [
            mutual_distillation(
                own[a],
                own[b],
                neighbour[a],
                neighbour[b],
                temperature=self.temperature,
                balance_weight=self.hparams["balance_weight"],
            )
            for a, b in combinations(own, 2)
        ]
        return {term: torch.stack([pair[term] for pair in pairs]).mean() for term in pairs[0]}


class CAEHeads(TAC):
    """TAC's training on CAE's counterparts: heads on the image, the noun and the caption counterpart.

    Counterparts are CAE's (optimal transport, centred), by the preset `default`. Arguments as in `TAC`.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from cae.data import ImageFolderData
        >>> model = CAEHeads(3, nouns="nouns.txt", captions="captions.txt")
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, **quiet)
        >>> trainer.fit(model, datamodule=ImageFolderData("photos", num_workers=0))
        >>> len(model.fitted.clusters)
        3
    """

    method: ClassVar[str] = "cae-heads"
    preset: ClassVar[Preset] = "default"
