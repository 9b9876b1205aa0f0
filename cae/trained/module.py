"""What the trained methods share: from images to a training set of embeddings, and from a network to labels.

    images ─ encoder ─▶ x ─ cae.pipeline ─▶ selected texts, counterparts ─▶ neighbours      once, before training
    rows of the training set ─ heads ─▶ loss                                                each step
    x ─ network ─▶ p (K,) ─▶ label                                                          for any image, without texts

The Trainer's loop runs on embeddings: whatever a DataModule or loader yields is encoded once, at the start of the fit.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import BatchSampler, DistributedSampler
from torchmetrics.aggregation import CatMetric

from cae import pipeline
from cae.blocks import blockwise
from cae.config import CAEConfig, Preset
from cae.encoders import Encoder
from cae.metrics import clustering_scores, silhouette_score
from cae.module import CAE, _images_of, _on_cpu, _placeholder, check_encoder, provenance
from cae.naming import describe_clusters
from cae.pipeline import Prediction
from cae.state import FittedCAE, ModelError
from cae.text import TextBank
from cae.trained.state import FittedHeads

logger = logging.getLogger("cae")

EPOCHS, BATCH, MANY_EPOCHS, MANY_BATCH = 20, 512, 100, 8192
"""TAC's, below and from `MANY_CLUSTERS` clusters on."""

MANY_CLUSTERS = 100

LEAST_STEPS = 100
"""Sets too small for so many steps in these epochs get more epochs; TAC's smallest, STL-10, makes 180 steps."""

LABEL_KEYS = ("label", "labels")


@dataclass(frozen=True)
class TrainingSet:
    """What training runs on; N images.

    Attributes:
        x: (N, D) float32 unit image embeddings.
        parts: `image` and each text modality: (N, D) float32 unit rows, without the modality's mean where the config
            centres.
        fitted: the training-free fit that selected the texts.
        banks: the banks that the texts come from.
    """

    x: Tensor
    parts: dict[str, Tensor]
    fitted: FittedHeads
    banks: Mapping[str, TextBank]


class TrainedClustering(pl.LightningModule):
    """A clustering network on frozen embeddings, trained with `trainer.fit`; the base of `TAC`, `CAEHeads` and `MCA`.

    `trainer.fit(module, datamodule)` encodes all images once and trains on their embeddings; `trainer.predict` on a
    trained module labels images, and on a fresh one trains first, `epochs(N)` epochs, on the images it is given.
    Batches are what `cae.CAE` takes. With DDP every process encodes all images and trains on its share of each batch;
    the losses see the predictions of all processes, and their gradient is that of one process with the whole batch,
    up to BatchNorm, whose statistics are a process's own unless the Trainer is told `sync_batchnorm=True` (on GPUs).

    Args:
        n_clusters: K.
        batch_size: images in a step, over all processes; by default 512, or 8192 from 100 clusters on. At most N.
        neighbours: how many nearest neighbours of an image the random one is drawn from.
        learning_rate: of Adam.
        balance_weight: weight of the entropy that keeps all clusters in use.
        return_embeddings: hand back the image embeddings with the predictions.
        options: `encoder`, `encoder_weights`, `nouns` and `captions` of `cae.CAE`, and fields of
            `cae.config.CAEConfig` for the selection of texts and the counterparts. `seed` is the training's as well.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    method: ClassVar[str]
    preset: ClassVar[Preset]

    def __init__(
        self,
        n_clusters: int,
        *,
        batch_size: int | None = None,
        neighbours: int = 50,
        learning_rate: float = 1e-3,
        balance_weight: float = 5.0,
        return_embeddings: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "neighbours": neighbours}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        # The training-free method: its encoder, banks and settings make the space that the heads are trained in.
        # Nothing is fused: every modality has a head of its own.
        self.space = CAE(n_clusters, preset=self.preset, **{**options, "fusion": "concat"})
        own = {
            "batch_size": batch_size,
            "neighbours": neighbours,
            "learning_rate": learning_rate,
            "balance_weight": balance_weight,
            "return_embeddings": return_embeddings,
        }
        inherited = {key: value for key, value in self.space.hparams.items() if key not in ("preset", *own)}
        self.save_hyperparameters({**inherited, **own}, logger=False)
        self.heads = nn.ModuleDict()
        self.fitted: FittedHeads | None = None
        self.training_set: TrainingSet | None = None
        self._collected: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._tested: dict[str, CatMetric] = {}

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

    # The same interface as CAE's, which folders and DataModules use.

    @property
    def config(self) -> CAEConfig:
        """Settings of the selection of texts and the counterparts, with K and the seed."""
        return self.space.config

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use."""
        return self.space.encoder

    def load_banks(self, reporter: Any = None) -> dict[str, TextBank]:
        """As `cae.CAE.load_banks`."""
        return self.space.load_banks(reporter)

    def epochs(self, n_images: int) -> int:
        """How many epochs N images deserve: TAC's number, and more where that would make few steps."""
        epochs = MANY_EPOCHS if self.config.n_clusters >= MANY_CLUSTERS else EPOCHS
        return max(epochs, math.ceil(LEAST_STEPS / max(n_images // self._batch_size(n_images), 1)))

    def _batch_size(self, n_images: int) -> int:
        many = self.config.n_clusters >= MANY_CLUSTERS
        return min(self.hparams["batch_size"] or (MANY_BATCH if many else BATCH), n_images)

    # Training.

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
            x = self._embed_all(_batches_of(source.instance))
            self.prepare(x, self.load_banks(), self._provenance())
            source.instance = self
        elif self.training_set is None:
            raise ValueError(f"{type(self).__name__} needs images or embeddings: pass a datamodule or a loader to fit")

    def _provenance(self) -> dict[str, Any]:
        return provenance(self.encoder, self.load_banks())

    def prepare(self, x: Tensor, banks: Mapping[str, TextBank], made_from: Mapping[str, Any]) -> None:
        """Select texts, find counterparts and neighbours: all that training needs but once.

        Args:
            x: (N, D) float32 unit image embeddings.
            banks: of the same encoder.
            made_from: provenance of the two.

        Raises:
            ValueError: what `cae.pipeline.fit` refuses.
        """
        # One restart: the labels of the training-free method are at most a start.
        base, _ = pipeline.fit(x, banks, replace(self.config, n_init=1), made_from)
        bare = FittedHeads(
            config=self.config,
            n_images=base.n_images,
            selected=base.selected,
            means=base.means,
            centroids=torch.empty(0, x.shape[1], device=x.device),
            clusters=[],
            provenance=base.provenance,
            method=self.method,
        )
        self.training_set = self.prepare_training(TrainingSet(x, centred_parts(x, base), bare, banks))

    def _embed_all(self, batches: Iterable[Any]) -> Tensor:
        """(N, D) float32 unit rows of all batches, on the device of the Trainer."""
        device = self.trainer.strategy.root_device
        self.encoder.to(device)
        with torch.no_grad():
            rows = [self.space.embed(_images_of(batch)).to(device) for batch in batches]
        if not rows:
            raise ValueError("the loader yields no batches: there is nothing to train on")
        return torch.cat(rows)

    def configure_model(self) -> None:
        """Make the heads once the width of the embeddings is known."""
        if not self.heads and self.training_set is not None:
            self.build_heads(self.training_set.x.shape[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as TAC sets it."""
        return torch.optim.Adam(self.heads.parameters(), lr=self.hparams["learning_rate"], betas=(0.9, 0.99))

    def train_dataloader(self) -> BatchSampler:
        """Row numbers of the training set, shuffled by seed and epoch: a resumed run sees what an unbroken one sees."""
        assert self.training_set is not None  # by setup
        n, world = len(self.training_set.x), self.trainer.world_size
        sampler: DistributedSampler[int] = DistributedSampler(
            range(n),  # type: ignore[arg-type]  # only its length is asked for
            num_replicas=world,
            rank=self.trainer.global_rank,
            seed=self.config.seed,
        )
        return BatchSampler(sampler, max(self._batch_size(n) // world, 1), drop_last=True)

    def training_step(self, batch: Sequence[int], batch_idx: int) -> Tensor:
        """One step on rows of the training set."""
        # Seeded by the step, so that what is drawn depends on nothing that came before.
        seed = (self.config.seed * 1_000_003 + self.global_step) * self.trainer.world_size + self.trainer.global_rank
        terms = self.losses(torch.as_tensor(batch), torch.Generator().manual_seed(seed))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch))
        return terms["loss"]

    def gathered(self, p: Tensor) -> Tensor:
        """The predictions (B, K) of all processes below each other, with gradients; the same tensor for one process."""
        if self.trainer.world_size == 1:
            return p
        together = self.all_gather(p, sync_grads=True)
        assert isinstance(together, Tensor)  # as `p` is
        return together.flatten(0, 1)

    def on_train_epoch_end(self) -> None:
        """Log how many clusters are in use, and the silhouette of the labels in the image space."""
        assert self.training_set is not None  # by setup
        if self.trainer.world_size > 1:
            # BatchNorm's running statistics are each process's own; labels should not be.
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

    def describe(self) -> FittedHeads:
        """The state that the network has by now, with names for its clusters."""
        assert self.training_set is not None  # by setup
        data = self.training_set
        labels = self.predict_embeddings(data.x).cluster
        clusters = describe_clusters(data.x, labels, data.fitted.selected, data.banks, self.config)
        weights = {key: value.detach().clone() for key, value in self.network().state_dict().items()}
        return replace(data.fitted, clusters=clusters, network=weights)

    def fit_embeddings(self, x: Tensor, banks: Mapping[str, TextBank] | None = None) -> Prediction:
        """Train on image embeddings, `epochs(N)` epochs with a Trainer of its own; returns their predictions.

        Args:
            x: (N, D) float32 unit rows, on the device that shall do the work.
            banks: in place of the module's own, and then without their provenance.
        """
        made_from = self._provenance() if banks is None else {}
        banks = self.load_banks() if banks is None else banks
        # Out of inference mode, in which Lightning predicts: what is made there cannot be trained.
        with torch.inference_mode(False), torch.enable_grad(), _silent_lightning():
            student = type(self)(**self.hparams)
            student.prepare(x.clone(), banks, made_from)
            trainer = pl.Trainer(
                max_epochs=self.epochs(len(x)),
                accelerator=x.device.type,
                devices=[x.device.index or 0] if x.device.type == "cuda" else 1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            try:
                trainer.fit(student)
            except SystemExit as stop:
                # How Lightning answers Ctrl-C.
                raise KeyboardInterrupt if trainer.interrupted else stop from stop
            assert student.fitted is not None  # by training
            self._adopt(student.fitted.to(x.device))
        return self.predict_embeddings(x)

    # Prediction.

    def predict_embeddings(self, x: Tensor) -> Prediction:
        """Label image embeddings.

        Args:
            x: (B, D) float32 unit rows of the trained encoder, B at least 1, on the module's device.

        Returns:
            `cluster`, the arg-max of the network's p; `runner_up`; `confidence` 1 - p_2 / p_1, which is 0 half-way
            between two clusters; `similarity` p_1; `beta`, all on the image: texts take no part.
        """
        network = self.network()
        training = self.heads.training
        self.heads.eval()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            (p,) = blockwise(lambda rows: (network(normalize(rows - self._image_mean(), dim=1)),), x)
        self.heads.train(training)
        top, order = p.topk(2, dim=1)
        beta = torch.zeros(len(x), 1 + len(self.config.modalities), device=x.device)
        beta[:, 0] = 1
        return Prediction(order[:, 0], 1 - top[:, 1] / top[:, 0], order[:, 1], top[:, 0], beta)

    def _image_mean(self) -> Tensor:
        state = self.training_set.fitted if self.training_set is not None else self.fitted
        assert state is not None  # one of the two is there once there are heads
        return state.means[0]

    def on_predict_start(self) -> None:
        """Bring encoder and state to the Trainer's device, and refuse a state of another encoder.

        Raises:
            ModelError: trained with another encoder.
            RuntimeError: a fresh module on several processes.
        """
        self._collected = []
        if self.fitted is None and self.trainer.world_size > 1:
            raise RuntimeError(
                f"{type(self).__name__} is not trained yet; on several processes, call trainer.fit first"
            )
        self._ready()

    def _ready(self) -> None:
        self.encoder.to(self.device)
        if self.fitted is not None:
            check_encoder(self.fitted, self.encoder)
            self.fitted = self.fitted.to(self.device)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Label a batch of images; or collect it, on a fresh module, as `cae.CAE.predict_step` does.

        Returns:
            The fields of `cae.pipeline.Prediction` for B images, on the CPU; `index` if the batch is a dict that has
            one; `embedding` (B, D) float32 unit rows with `return_embeddings=True`.
        """
        x = self.space.embed(_images_of(batch))
        if self.fitted is not None and len(x):
            result = _on_cpu(self.predict_embeddings(x))
        else:
            result = _on_cpu(_placeholder(len(x), self.config))
            if self.fitted is None:
                self._collected.append((x, result))
        if isinstance(batch, Mapping) and "index" in batch:
            result["index"] = batch["index"].cpu()
        if self.hparams["return_embeddings"]:
            result["embedding"] = x.cpu()
        return result

    def on_predict_epoch_end(self) -> None:
        """On a fresh module: train on everything collected, and fill in the predictions already handed out."""
        if not self._collected:
            return
        embeddings, results = zip(*self._collected, strict=True)
        self._collected = []
        found = _on_cpu(self.fit_embeddings(torch.cat(embeddings)))
        start = 0
        for x, result in zip(embeddings, results, strict=True):
            for key, values in found.items():
                # In place: the trainer holds these very tensors.
                result[key].copy_(values[start : start + len(x)])
            start += len(x)

    # Validation and test: what callbacks collect, and scores where there are labels.

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Embeddings and clusters of a batch, and its labels if it has some, for callbacks."""
        x = self.space.embed(_images_of(batch))
        labels = _labels_of(batch)
        return {
            "embedding": x,
            "cluster": self.predict_embeddings(x).cluster,
            **({} if labels is None else {"label": labels.to(x.device)}),
        }

    def on_test_start(self) -> None:
        """Refuse to test what is not trained, or trained with another encoder.

        Raises:
            ModelError: either of these.
        """
        if self.fitted is None:
            raise ModelError(f"this {type(self).__name__} is not trained yet; call trainer.fit first")
        self._ready()
        self._tested = {name: CatMetric().to(self.device) for name in ("cluster", "label")}

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As `validation_step`, keeping labels for the scores."""
        outputs = self.validation_step(batch, batch_idx, dataloader_idx)
        if "label" not in outputs:
            raise ValueError(
                "a test needs labels: batches must be tuples (image, label), or dicts with one of "
                + ", ".join(LABEL_KEYS)
            )
        for name, metric in self._tested.items():
            metric.update(outputs[name])
        return outputs

    def on_test_epoch_end(self) -> None:
        """Log NMI, ACC and ARI in percent under `test/`."""
        clusters, labels = (metric.compute().long() for metric in self._tested.values())
        self.log_dict({f"test/{name}": score for name, score in clustering_scores(clusters, labels).items()})

    # On disk.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that predicting needs, with the names the clusters have by now."""
        fitted = self.fitted if self.training_set is None else self.describe()
        if fitted is not None:
            checkpoint["fitted"] = fitted.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`; the heads must be there before their weights are."""
        if "fitted" in checkpoint:
            self.fitted = FittedHeads.from_state_dict(checkpoint["fitted"])
            if not self.heads:
                self.build_heads(self.fitted.means.shape[1])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what predicting needs as a folder with `model.safetensors` and `config.json`.

        Raises:
            ModelError: not trained yet.
        """
        if self.fitted is None:
            raise ModelError(f"this {type(self).__name__} is not trained yet; call trainer.fit first")
        self.fitted.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Load a folder written by `save_pretrained`, for predicting.

        Args:
            folder: the model folder.
            overrides: `encoder`, `encoder_weights` or `return_embeddings` of the constructor.

        Raises:
            ModelError: no model folder, damaged, of a newer format, or of another method.
        """
        fitted = FittedHeads.load(folder)
        if fitted.method != cls.method:
            raise ModelError(f"{folder} holds a model of {fitted.method}, not of {cls.method}")
        settings: dict[str, Any] = {field: getattr(fitted.config, field) for field in CAEConfig.__dataclass_fields__}
        module = cls(**{"encoder": fitted.provenance["encoder"]["spec"], **settings, **overrides})
        module._adopt(fitted)
        return module

    def _adopt(self, fitted: FittedHeads) -> None:
        """Predict by a fitted state from now on."""
        self.build_heads(fitted.means.shape[1])
        self.heads.to(fitted.means.device)
        self.network().load_state_dict(fitted.network)
        self.fitted = fitted


def centred_parts(x: Tensor, fitted: FittedCAE) -> dict[str, Tensor]:
    """Images and counterparts as the heads see them: (N, D) unit rows, each modality without its mean.

    Args:
        x: (N, D) float32 unit image embeddings.
        fitted: gives texts, potentials and means; the means are zero where its config does not centre.
    """
    seen = pipeline.representations(x, fitted)
    names = ("image", *fitted.config.modalities)
    return {name: normalize(seen[name] - mean, dim=1) for name, mean in zip(names, fitted.means, strict=True)}


def _batches_of(source: Any) -> Iterable[Any]:
    """The batches of a DataModule, by its train loader or else its predict loader; or of a loader itself."""
    if not isinstance(source, pl.LightningDataModule):
        return source
    for name in ("train_dataloader", "predict_dataloader"):
        if is_overridden(name, source, pl.LightningDataModule):
            return getattr(source, name)()
    raise ValueError(f"{type(source).__name__} has neither a train_dataloader nor a predict_dataloader")


def _labels_of(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    return None


@contextmanager
def _silent_lightning() -> Iterator[None]:
    """No log lines and hints of a Trainer that the user did not make."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*validation_step.*no `val_dataloader`.*")
            yield
    finally:
        log.setLevel(level)
