"""What the trained methods share: from images to a training set of embeddings, and from a network to labels.

    images ─ encoder ─▶ x ─ cae.method.pipeline ─▶ selected texts, counterparts ─▶ neighbours      once, before training
    rows of the training set ─ heads ─▶ loss                                                each step
    x ─ network ─▶ p (K,) ─▶ label                                                          for any image, without texts

The Trainer's loop runs on embeddings: whatever a DataModule or loader yields is encoded once, at the start of the fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import MethodType
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize
from torch.utils.data import BatchSampler, DistributedSampler

from cae.config import Preset
from cae.method import pipeline
from cae.method.blocks import blockwise
from cae.method.fitted import FittedCAE, ModelError
from cae.method.naming import describe_clusters
from cae.method.partition import Partition
from cae.method.pipeline import Prediction
from cae.metrics.functional import silhouette_score
from cae.models.batches import images_of, index_of, labels_of, refuse_repeats
from cae.models.cae import CAE
from cae.models.embedder import fit_silently
from cae.models.trained import schedule
from cae.models.trained.training_set import TrainingSet, batches_of, centred_parts
from cae.text import TextBank
from cae.utils.distributed import all_gather_rows, all_reduce_count
from cae.utils.progress import report_progress, stage

logger = logging.getLogger(__name__)


class TrainedClustering(CAE):
    """A clustering network on frozen embeddings, trained with `trainer.fit`; the base of `TAC`, `CAEHeads` and `MCA`.

    It is `cae.CAE` up to the counterparts: encoder, texts and settings make the space that the network is trained in,
    and predicting, testing, saving and loading are the same. What differs: `trainer.fit(module, datamodule)` encodes
    all images once and trains on their embeddings; `trainer.predict` on a fresh module trains first, `epochs(N)`
    epochs, on the images it is given. With DDP every process encodes all images and trains on its share of each batch;
    the losses see the predictions of all processes, and their gradient is that of one process with the whole batch,
    up to BatchNorm, whose statistics are a process's own unless the Trainer is told `sync_batchnorm=True` (on GPUs).

    Args:
        n_clusters: K, or "auto" to find it out as `cae.CAE` does, before training.
        batch_size: images in a step, over all processes, at least 2; by default 512, or 8192 from 100 clusters on. At
            most N.
        neighbours: number of nearest neighbours that the random neighbour of an image is drawn from.
        learning_rate: learning rate of Adam.
        balance_weight: weight of the entropy that keeps all clusters in use.
        options: arguments of `cae.CAE`, but `preset` and `fusion`. `seed` is the training's as well.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    preset: ClassVar[Preset]

    def __init__(
        self,
        n_clusters: int | Literal["auto"],
        *,
        batch_size: int | None = None,
        neighbours: int = 50,
        learning_rate: float = 1e-3,
        balance_weight: float = 5.0,
        **options: Any,
    ) -> None:
        # BatchNorm takes no batch of one.
        for name, value, least in (("batch_size", batch_size, 2), ("neighbours", neighbours, 1)):
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        # Nothing is fused: every modality has a head of its own.
        super().__init__(n_clusters, preset=self.preset, **{**options, "fusion": "concat"})
        self.automatic_optimization = True
        self.save_hyperparameters(
            {
                "batch_size": batch_size,
                "neighbours": neighbours,
                "learning_rate": learning_rate,
                "balance_weight": balance_weight,
            },
            logger=False,
        )
        self.hparams.pop("preset")
        self.heads = nn.ModuleDict()
        self.register_load_state_dict_post_hook(_take_checked_network)
        self.training_set: TrainingSet | None = None

    # What the subclasses say.

    def build_heads(self, dim: int) -> None:
        """Fill `heads` for embeddings of width `dim`."""
        raise NotImplementedError

    def network(self) -> nn.Module:
        """The part of `heads` that takes (B, D) rows of the image modality to (B, K) probabilities."""
        raise NotImplementedError

    def prepare_training(self, data: TrainingSet) -> TrainingSet:
        """Find what the losses need beside the training set, such as neighbours; may narrow down its texts."""
        raise NotImplementedError

    def losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The `loss` of a step and its terms for (B,) rows of the training set; random draws from `generator` only."""
        raise NotImplementedError

    def epochs(self, n_images: int) -> int:
        """How many epochs N images deserve, see `cae.models.trained.schedule`."""
        return schedule.epochs(n_images, self._batch_size(n_images), self.config.n_clusters)

    def _batch_size(self, n_images: int) -> int:
        return min(self.hparams["batch_size"] or schedule.batch_size(self.config.n_clusters), n_images)

    # Training.

    def configure_callbacks(self) -> list[pl.Callback]:
        """As the base class. In a fit without validation data, hide `validation_step`, or Lightning would warn."""
        if self.trainer.training and not self.trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
            hidden = MethodType(pl.LightningModule.validation_step, self)
            self.validation_step = hidden  # type: ignore[method-assign]  # until teardown
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Before a fit: encode the images of the loader, and let the Trainer loop over embeddings in its place.

        Raises:
            ValueError: nothing to train on.
        """
        if stage != "fit":
            return
        self.train()  # an earlier prediction or test has left it otherwise
        # Lightning has no public way to say where a module's batches come from; this is where it looks.
        source = self.trainer.fit_loop._data_source
        if source.instance is not self:
            self.prepare(self._embed_all(batches_of(source.instance)), self.load_banks(), self._provenance())
            source.instance = self
        elif self.training_set is None:
            raise ValueError(f"{type(self).__name__} needs images or embeddings: pass a datamodule or a loader to fit")

    def teardown(self, stage: str) -> None:
        """Free the embeddings: only the fitted state is needed from here on."""
        super().teardown(stage)
        self.training_set = None
        vars(self).pop("validation_step", None)

    def prepare(self, x: Tensor, banks: Mapping[str, TextBank], made_from: Mapping[str, Any]) -> None:
        """Select texts, and find counterparts and neighbours: done once, before training.

        Args:
            x: (N, D) float32 or float16 unit image embeddings.
            banks: text banks of the same encoder.
            made_from: provenance of the two.

        Raises:
            ValueError: what `cae.method.pipeline.fit` refuses.
        """
        # One restart is enough: the clusters of the training-free fit are not kept.
        base, _ = pipeline.fit(x.to(self.method_device), banks, replace(self.config, n_init=1), made_from)
        self.config = replace(self.config, n_clusters=base.config.n_clusters)
        nothing = Partition(base.partition.centroids[:0], None, spherical=False)
        bare = replace(base, config=self.config, method=self.method, partition=nothing, clusters=[])
        bare = replace(bare, hierarchy=None, nodes=[])  # they belong to the clusters of the training-free fit
        x = x.float()
        parts = {name: part.to(x.device) for name, part in centred_parts(x.to(self.method_device), base).items()}
        self.training_set = self.prepare_training(TrainingSet(x, parts, bare.to(x.device), banks))

    def _embed_all(self, batches: Iterable[Any]) -> Tensor:
        """(N, D) unit rows of all images, on the device of the Trainer; the same on every process."""
        device = self.trainer.strategy.root_device
        self.encoder.to(device)
        index = [torch.empty(0, dtype=torch.int64)]
        with torch.no_grad():
            rows = [self.embed(torch.empty(0, self.encoder.dim)).to(device)]
            for batch in batches:
                rows.append(self.embed(images_of(batch)).to(device))
                if (given := index_of(batch, len(rows[-1]))) is not None:
                    index.append(given)
        x, numbers = torch.cat(rows), torch.cat(index)
        if self.group is None:
            refuse_repeats(numbers)
        if all_reduce_count(len(numbers), self.group):
            # With `index`, as from the modules of cae.data, batches are a process's share; else they are all images.
            x, numbers = all_gather_rows(x, self.group), all_gather_rows(numbers, self.group)
            x = x[torch.from_numpy(np.unique(numbers.numpy(), return_index=True)[1]).to(device)]
        if not len(x):
            raise ValueError("the loader yields no images: there is nothing to train on")
        return x

    def configure_model(self) -> None:
        """Make the heads once the width of the embeddings is known."""
        if not self.heads and self.training_set is not None:
            self.build_heads(self.training_set.x.shape[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]  # the base trains nothing
        """Adam as TAC sets it."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.hparams["learning_rate"], betas=(0.9, 0.99))

    def train_dataloader(self) -> BatchSampler:
        """Row numbers of the training set, shuffled by seed and epoch, so that a resumed run sees the same batches."""
        assert self.training_set is not None  # by setup
        n, world = len(self.training_set.x), self.trainer.world_size
        sampler: DistributedSampler[int] = DistributedSampler(
            range(n),  # type: ignore[arg-type]  # only its length is asked for
            num_replicas=world,
            rank=self.trainer.global_rank,
            seed=self.config.seed,
        )
        return BatchSampler(sampler, max(self._batch_size(n) // world, 2), drop_last=True)

    def training_step(self, batch: Sequence[int], batch_idx: int) -> Tensor:  # type: ignore[override]
        """One step on rows of the training set."""
        # Seed by the step, so that draws do not depend on earlier ones.
        seed = (self.config.seed * 1_000_003 + self.global_step) * self.trainer.world_size + self.trainer.global_rank
        terms = self.losses(torch.as_tensor(batch), torch.Generator().manual_seed(seed))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch))
        return terms["loss"]

    def gathered(self, p: Tensor) -> Tensor:
        """The concatenated predictions (B, K) of all processes, with gradients."""
        if self.trainer.world_size == 1:
            return p
        together = self.all_gather(p, sync_grads=True)
        assert isinstance(together, Tensor)  # as `p` is
        return together.flatten(0, 1)

    def on_fit_start(self) -> None:
        """Nothing to do: `setup` has moved the encoder to the device and used it."""

    def on_train_epoch_end(self) -> None:
        """Log how many clusters are in use, and the silhouette of the labels in the image space."""
        assert self.training_set is not None  # by setup
        if self.trainer.world_size > 1:
            # Running statistics of BatchNorm differ between processes, and labels must not.
            for buffer in self.heads.buffers():
                torch.distributed.broadcast(buffer, 0)
        labels = self.predict_embeddings(self.training_set.x).cluster
        scores = {
            "clusters_used": float(len(labels.unique())),
            "silhouette": silhouette_score(self.training_set.x, labels),
        }
        self.log_dict({f"train/{name}": value for name, value in scores.items()})

    def on_train_end(self) -> None:
        """Name the clusters, and say if some came out empty."""
        self.fitted = self.describe()
        self._warn_of_collapse()

    @rank_zero_only
    def _warn_of_collapse(self) -> None:
        assert self.fitted is not None  # by on_train_end
        empty = sum(cluster.size == 0 for cluster in self.fitted.clusters)
        if empty:
            logger.warning(
                "the training has collapsed: %d of %d clusters hold no image; ask for fewer clusters, or raise "
                "balance_weight",
                empty,
                len(self.fitted.clusters),
            )

    def describe(self) -> FittedCAE:
        """The state that the network has by now, with names for its clusters."""
        assert self.training_set is not None  # by setup
        data = self.training_set
        labels = self.predict_embeddings(data.x).cluster
        clusters = describe_clusters(data.x, labels, data.fitted.selected, data.banks, self.config)
        weights = {key: value.detach().clone() for key, value in self.network().state_dict().items()}
        return replace(data.fitted, clusters=clusters, network=weights)

    def fit_embeddings(
        self,
        x: Tensor,
        index: Tensor | None = None,
        *,
        group: ProcessGroup | None = None,
        banks: Mapping[str, TextBank] | None = None,
    ) -> Prediction:
        """Train on image embeddings, `epochs(N)` epochs with a Trainer of its own; returns their predictions.

        Args:
            x: (N, D) float32 or float16 unit rows, on the device to work on.
            index: (N,) int64 ids of the images, all different: with them the result does not depend on their order.
            group: must be None: this does not run on several processes.
            banks: text banks in place of the module's own, and then without provenance.

        Raises:
            RuntimeError: a group of processes; `trainer.fit` trains on several.
        """
        if group is not None:
            raise RuntimeError(f"on several processes {type(self).__name__} is trained with trainer.fit")
        made_from = self._provenance() if banks is None else {}
        banks = self.load_banks() if banks is None else banks
        # Leave the inference mode in which Lightning predicts: its tensors cannot be trained.
        with torch.inference_mode(False), torch.enable_grad():
            student = type(self)(**self.hparams)
            rows = x.to(torch.float32, copy=True)
            student.prepare(rows if index is None else rows[index.argsort().to(x.device)], banks, made_from)
            with stage("training"):
                fit_silently(student, x.device, student.epochs(len(x)), LambdaCallback(on_train_epoch_end=_tell_epoch))
            assert student.fitted is not None  # by training
            self.heads.clear()
            self._adopt(student.fitted.to(x.device))
        return self.predict_embeddings(x)

    # Prediction.

    def predict_embeddings(self, x: Tensor) -> Prediction:
        """Label image embeddings.

        Args:
            x: (B, D) float32 or float16 unit rows of the trained encoder, on the device of the heads.

        Returns:
            `cluster`, the arg-max of the network's p; `runner_up`; `confidence` 1 - p_2 / p_1, which is 0 half-way
            between two clusters; `similarity` p_1; `beta`, all on the image: texts take no part.
        """
        if not self.heads:
            raise self._not_fitted()
        # The fitted state stays where it was loaded: PyTorch moves what is a parameter or a buffer alone.
        device = next(self.heads.parameters()).device
        network, x, mean = self.network(), x.to(device), self._image_mean().to(device)
        training = self.heads.training
        self.heads.eval()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            (p,) = blockwise(lambda rows: (network(normalize(rows.float() - mean, dim=1)),), x)
        self.heads.train(training)
        top, order = p.topk(2, dim=1)
        beta = torch.zeros(len(x), 1 + len(self.config.modalities), device=x.device)
        beta[:, 0] = 1
        return Prediction(order[:, 0], 1 - top[:, 1] / top[:, 0], order[:, 1], top[:, 0], beta, order[:, 0])

    def _image_mean(self) -> Tensor:
        state = self.training_set.fitted if self.training_set is not None else self.fitted
        assert state is not None  # one of the two is there once there are heads
        return state.means[0]

    def on_predict_start(self) -> None:
        """As `cae.CAE`.

        Raises:
            ModelError: trained with another encoder.
            RuntimeError: a fresh module on several processes.
        """
        if self.fitted is None and self.trainer.world_size > 1:
            raise RuntimeError(
                f"{type(self).__name__} is not trained yet; on several processes, call trainer.fit first"
            )
        super().on_predict_start()

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embeddings and clusters of a batch, and its labels if it has some, for callbacks."""
        x = self.embed(images_of(batch))
        labels = labels_of(batch)
        return {
            "embedding": x,
            "cluster": self.predict_embeddings(x).cluster,
            **({} if labels is None else {"label": labels.to(x.device)}),
        }

    # On disk.

    def get_extra_state(self) -> dict[str, Any]:
        """As `cae.CAE`; during training with the names that the clusters have by now."""
        return super().get_extra_state() if self.training_set is None else self.describe().state_dict()

    def _adopt(self, fitted: FittedCAE) -> None:
        """Predict by a fitted state from now on."""
        super()._adopt(fitted)
        self.config = fitted.config
        if not self.heads:
            self.build_heads(fitted.means.shape[1])
        self.heads.to(fitted.means.device)
        try:
            self.network().load_state_dict(fitted.network)
        except RuntimeError as error:
            raise ModelError(f"the network in the model is none of {self.method} ({error}); fit it again") from error


def _take_checked_network(module: nn.Module, _: Any) -> None:
    """After loading a checkpoint, take the network from the fitted state, whose checksum was verified."""
    assert isinstance(module, TrainedClustering)
    if module.fitted is not None:
        module._adopt(module.fitted)


def _tell_epoch(trainer: pl.Trainer, _module: pl.LightningModule) -> None:
    assert trainer.max_epochs is not None  # by fit_embeddings
    done = trainer.current_epoch + 1
    report_progress(done / trainer.max_epochs, f"epoch {done} of {trainer.max_epochs}")
