"""Cluster a model's embeddings while it trains: `Trainer(callbacks=[ClusteringCallback(n_clusters=10)])`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from types import NoneType
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from cae.callbacks.loggers import log_details
from cae.callbacks.ranks import gather, on_rank_zero
from cae.callbacks.reservoir import Reservoir, smallest
from cae.callbacks.sample import Clustering, ClusteringError, SampleClusterer
from cae.callbacks.sources import METHOD_HINT, EmbeddingSource
from cae.config import CAEConfig, Preset
from cae.encoders import Encoder
from cae.method.cluster_count import FEWEST
from cae.models.estimator import refuse_texts_beside_banks, text_banks
from cae.models.signature import given_settings, spell_out_settings
from cae.text import TextBank
from cae.text.vectors import Source, limit_modalities, text_sources

T = TypeVar("T")

LOWEST = {
    "nmi": 0.0,
    "acc": 0.0,
    "ari": -0.5,
    "silhouette": -1.0,
    "stability": -0.5,
    "size_min": 0.0,
    "size_max": 0.0,
}
"""Value of each score for monitors until the first clustering: its smallest possible value."""

RESTARTS = 5
"""Default restarts of k-means: fewer than in a final fit, since this runs in every epoch."""


@spell_out_settings
class ClusteringCallback(Callback):
    """Clusters embeddings at the end of a validation run and logs how good the clusters are.

    Scores are logged as `cluster_acc`, `cluster_nmi`, `cluster_ari` (all in [0, 1], if there are class labels),
    `cluster_silhouette`, `cluster_stability`, … (`Clustering.scores`), and can be monitored by ModelCheckpoint and
    EarlyStopping: on validation runs that do not cluster, monitors see the last scores, and before the first clustering
    the least they can be, while loggers get measured values only. `clustering` holds the last result, in which clusters
    keep their ids from one run to the next.

    Without texts the embeddings alone are clustered; with `banks` or an `encoder` of the same space they are
    CAE's. On several processes rank 0 clusters a sample of all ranks' embeddings; rows that a DistributedSampler
    repeats to even out the ranks, at most one a rank, are part of it. Several validation loaders are clustered as one.

    The model's weights, gradients and mode, and the global random generators, stay as they are. A failure is a warning,
    and training goes on.

    Args:
        n_clusters: K, or `auto` to find it out at the first clustering and keep it, so that clusters keep their ids.
        embedding: place of the embeddings (B, D) in what `validation_step` returns: a dict key, a path of keys,
            attributes and positions (`"outputs.pooled"`, `"1"`), or a function of it.
        label: place of the class labels (B,), at least 0, likewise; None for none.
        method: source of the embeddings in place of `validation_step`: a function of module and batch, such as
            `lambda module, batch: module.backbone(batch[0])`, or the name of a method of the LightningModule that takes
            the batch. Its result holds the embeddings (B, D), or is them if `embedding` is left alone. `label` is then
            looked up in the batch.
        banks: a `cae.text.TextBank` of the embeddings' space under `noun` and under `caption`.
        encoder: encoder of the corpora, in place of `banks`: a spec for `cae.encoders.load_encoder` or an `Encoder`.
        nouns: corpus for `encoder`; or a file of text vectors of the embeddings' space, which needs none.
        captions: corpus, or file of text vectors, of captions, likewise.
        every_n_epochs: cluster the validation runs of every n-th epoch; 1 unless `every_n_train_steps` is given.
        every_n_train_steps: number of steps, in place of epochs: cluster at the first validation run after this many
            more steps.
        max_samples: cluster a uniform sample of at most so many embeddings.
        prefix: prefix of the logged names. Callbacks that share one have what they cluster appended to it:
            `cluster_early_acc` and `cluster_late_acc` for `embedding="early"` and `embedding="late"`.
        details: give loggers more than scores: cluster sizes to every logger, a histogram and the embedding projector
            to TensorBoard, a table to W&B.
        strict: raise `ClusteringError` in place of the warning.
        preset: preset of `cae.config.CAEConfig`; `default` keeps one rule for all epochs, `auto` may choose again.
        settings: any field of `CAEConfig`, such as `seed`; `n_init` is 5 unless given.

    Raises:
        ValueError: a setting is unknown or out of range, or settings exclude each other.
        ClusteringError: from validation hooks, with `strict=True`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> class Model(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(8, 4)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return self.net(batch[0]).square().mean()
        ...
        ...     def validation_step(self, batch, batch_idx):
        ...         return {"embedding": self.net(batch[0]), "label": batch[1]}
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> data = DataLoader(TensorDataset(torch.randn(60, 8), torch.arange(60) % 3), batch_size=20)
        >>> callback = ClusteringCallback(n_clusters=3, embedding="embedding", label="label")
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], logger=False, **quiet)
        >>> trainer.fit(Model(), data, data)
        >>> sorted(name for name in trainer.callback_metrics if name in ("cluster_acc", "cluster_ari", "cluster_nmi"))
        ['cluster_acc', 'cluster_ari', 'cluster_nmi']
    """

    def __init__(
        self,
        n_clusters: int | Literal["auto"],
        *,
        embedding: str | Callable[[Any], Tensor] | None = None,
        label: str | Callable[[Any], Tensor] | None = None,
        method: str | Callable[[Any, Any], Any] | None = None,
        banks: Mapping[str, TextBank] | None = None,
        encoder: str | Encoder | None = None,
        nouns: Source | None = None,
        captions: Source | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        max_samples: int = 20_000,
        prefix: str = "cluster_",
        details: bool = False,
        strict: bool = False,
        preset: Preset = "default",
        **settings: Any,
    ) -> None:
        check_options(n_clusters, method, every_n_epochs, every_n_train_steps, max_samples)
        refuse_texts_beside_banks(banks, encoder, nouns, captions)
        settings = {"n_init": RESTARTS, **given_settings(settings)}
        self.config = CAEConfig.from_preset(preset, n_clusters, **settings)
        if banks is None and "modalities" not in settings:
            self.config = limit_modalities(self.config, text_sources(nouns, captions))
        self.embedding = embedding if embedding or method else "embedding"
        self.label = label
        self.method = method
        self.banks = banks
        self.encoder = encoder
        self.nouns = nouns
        self.captions = captions
        self.every_n_epochs = every_n_epochs or 1
        self.every_n_train_steps = every_n_train_steps
        self.max_samples = max_samples
        self.own_prefix = self.prefix = prefix
        self.details = details
        self.strict = strict
        self.preset: Preset = preset
        self.settings = settings
        self.clustering: Clustering | None = None
        self._last_step = 0
        self._run: _ValidationRun | None = None

    @property
    def source(self) -> EmbeddingSource:
        """The place of the embeddings and labels of a batch."""
        return EmbeddingSource(self.embedding, self.label, self.method)

    @property
    def state_key(self) -> str:
        """A key that differs between several of these callbacks, for their saved states."""
        return self._generate_state_key(
            prefix=self.own_prefix, source=self.source.name, n_clusters=self.config.n_clusters
        )

    def state_dict(self) -> dict[str, Any]:
        """The last clustering, so that ids and monitors go on after a resume."""
        return {"last_step": self._last_step, "clustering": self.clustering and asdict(self.clustering)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._last_step = state_dict["last_step"]
        self.clustering = Clustering(**state_dict["clustering"]) if state_dict["clustering"] else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check before training that the module has the method, and that the texts are available.

        Raises:
            ValueError: no such method.
            EncoderError, TextError: the encoder or its texts are not available.
        """
        if stage not in ("fit", "validate"):
            return
        self._tell_apart(trainer)
        self.source.check(pl_module)
        if self.banks is None:
            on_rank_zero(trainer, lambda: self._load_banks(trainer))

    def _tell_apart(self, trainer: pl.Trainer) -> None:
        others = [callback for callback in trainer.callbacks if isinstance(callback, ClusteringCallback)]  # type: ignore[attr-defined]
        sharing = [callback for callback in others if callback.own_prefix == self.own_prefix]
        self.prefix = self.own_prefix
        if len(sharing) == 1:
            return
        sources = [callback.source.name for callback in sharing]
        if sources.count(self.source.name) > 1:
            raise ValueError(
                f"two ClusteringCallbacks cluster {self.source.name!r} and log under {self.own_prefix!r}; give each a "
                "prefix of its own"
            )
        # Of a function it may be `main.<locals>.<lambda>`, and MLflow, for one, refuses brackets in names.
        own = re.sub(r"\W+", "_", self.source.name).rstrip("_")
        self.prefix = f"{self.own_prefix}{own}_"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if this fit has no validation run."""
        if not trainer.enable_validation:
            rank_zero_warn(
                "ClusteringCallback clusters at the end of validation runs, and this fit has none; it needs a "
                "validation loader (trainer.fit(model, train, val)) and a `validation_step`. Where that returns no "
                f"embeddings, {METHOD_HINT}; then `def validation_step(self, batch, batch_idx): pass` is enough",
                category=RuntimeWarning,
            )

    def _load_banks(self, trainer: pl.Trainer) -> None:
        shown = trainer.progress_bar_callback is not None
        self.banks = text_banks(
            self.config, None, self.encoder, nouns=self.nouns, captions=self.captions, progress=shown
        )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show monitors the last scores, and begin to collect if this run is to be clustered."""
        self._run = None
        if trainer.sanity_checking:
            return
        # Logged before the measured scores, which replace them for monitors if there are any.
        self._log(pl_module, self._standing_scores(), logger=False)
        if self._is_due(trainer):
            self._run = _ValidationRun(Reservoir(self.max_samples, self.config.seed + trainer.global_rank))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the batch's embeddings; a failure is reported at the end, to all ranks, so that none waits."""
        run = self._run
        if run is None or run.failure is not None:
            return
        _, error = attempt(lambda: self._collect(run, trainer, pl_module, outputs, batch))
        if error is not None:
            run.failure = f"on_validation_batch_end, batch {batch_idx}: {error}"

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cluster what was collected and log the scores.

        Raises:
            ClusteringError: with `strict=True`, embeddings could not be collected or clustered.
        """
        if self._run is None:
            return
        run, self._run = self._run, None
        collected = gather(trainer, (run.failure, None if run.failure else run.reservoir.sample()))
        clustering, error = attempt(lambda: on_rank_zero(trainer, lambda: self._cluster(trainer, pl_module, collected)))
        if clustering is None:
            message = f"on_validation_epoch_end: {error}"
            if self.strict:
                raise ClusteringError(message) from error
            rank_zero_warn(f"this validation run was not clustered: {message}", category=RuntimeWarning)
            return
        self.clustering, self._last_step = clustering, trainer.global_step
        sizes = {f"size_{k}": float(size) for k, size in enumerate(clustering.sizes)} if self.details else {}
        self._log(pl_module, {**clustering.scores, **sizes})

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING:
            return True  # trainer.validate
        if self.every_n_train_steps is not None:
            return trainer.global_step - self._last_step >= self.every_n_train_steps
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _standing_scores(self) -> dict[str, float]:
        # Log the same names in every run. Lightning keeps entries in the order of their first use, and the last of a
        # name counts: an entry that was first made here after the measured score would hide that score.
        last = self.clustering.scores if self.clustering else {}
        needs_label = {"nmi", "acc", "ari"}
        return {name: last.get(name, low) for name, low in LOWEST.items() if self.label or name not in needs_label}

    def _log(self, pl_module: pl.LightningModule, scores: Mapping[str, float], *, logger: bool | None = None) -> None:
        # All ranks log the same number, and the maximum returns it exactly; a mean could round it.
        pl_module.log_dict(
            {self.prefix + name: score for name, score in scores.items()},
            logger=logger,
            sync_dist=True,
            reduce_fx="max",
            batch_size=1,
        )

    def _collect(
        self, run: _ValidationRun, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any
    ) -> None:
        columns = self.source.read(trainer, pl_module, outputs, batch, run.width)
        run.width = columns[0].shape[1]
        run.reservoir.add(*columns)

    def _cluster(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        collected: Sequence[tuple[str | None, tuple[Tensor, ...] | None]],
    ) -> Clustering:
        """On rank 0: cluster the ranks' samples, keep the ids of the clusters, and score them."""
        for rank, (failure, _) in enumerate(collected):
            if failure is not None:
                raise ClusteringError(f"rank {rank}, {failure}" if len(collected) > 1 else failure)
        parts = [sample for _, sample in collected if sample is not None]
        if not parts:
            raise ClusteringError("no embeddings were collected")
        _, positions, x, *targets = smallest(parts, self.max_samples)
        self._check(x)
        x = normalize(x, dim=1)
        classes = targets[0].unique(return_inverse=True)[1] if targets else None
        samples = digest(positions, *targets) if has_fixed_order(trainer) else ""
        clusterer = SampleClusterer(self.config, self.preset, self.settings, self.banks, str(pl_module.device))
        clustering = clusterer.cluster(x, classes, samples, self.clustering)
        if self.details:
            n_clusters = len(clustering.centers)
            log_details(trainer.loggers, x, clustering.labels, classes, n_clusters, self.prefix, trainer.global_step)
        return clustering

    def _check(self, x: Tensor) -> None:
        name = f"embedding {self.source.name!r} of shape {tuple(x.shape)}"
        broken = int((~x.isfinite().all(dim=1)).sum())
        if broken:
            raise ClusteringError(f"{name} holds NaN or infinity in {broken} of {len(x)} rows")
        if len(x) < self.config.n_clusters:
            raise ClusteringError(f"{name}: {len(x)} samples are too few for {self.config.n_clusters} clusters")
        if self.clustering is not None and x.shape[1] != self.clustering.centers.shape[1]:
            raise ClusteringError(
                f"{name} is {x.shape[1]} wide, but {self.clustering.centers.shape[1]} at the last clustering (step "
                f"{self._last_step}); clusters of different spaces cannot keep their ids"
            )


def check_options(
    n_clusters: Any, method: Any, every_n_epochs: int | None, every_n_train_steps: int | None, max_samples: int
) -> None:
    """Refuse options of `ClusteringCallback` that are out of range or exclude each other.

    Raises:
        ValueError: names the option.
    """
    if n_clusters != "auto" and (not isinstance(n_clusters, Integral) or n_clusters < 2):
        raise ValueError(f"n_clusters must be a whole number of at least 2, or auto, got {n_clusters!r}")
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError("give every_n_epochs or every_n_train_steps, not both")
    for name, value in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    fewest = FEWEST if n_clusters == "auto" else n_clusters
    if max_samples < fewest:
        why = f"{fewest}, which n_clusters='auto' takes" if n_clusters == "auto" else f"n_clusters = {fewest}"
        raise ValueError(f"max_samples must be at least {why}, got {max_samples}")
    if method is not None and not isinstance(method, str) and not callable(method):
        raise ValueError(
            "method must be a function of module and batch, or the name of a method of the LightningModule, got "
            f"{method!r}"
        )


@dataclass
class _ValidationRun:
    """What is collected during a validation run that is to be clustered.

    Attributes:
        reservoir: the sample of this rank's embeddings, with their labels.
        width: D of the embeddings so far.
        failure: why nothing more is collected.
    """

    reservoir: Reservoir
    width: int | None = None
    failure: str | None = None


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result of `work`, or its error; the global random generators stay as they were."""
    # The error is caught inside, because `isolate_rng` does not restore the generators after one.
    with isolate_rng():
        try:
            return work(), None
        except Exception as error:
            return None, error


def digest(*columns: Tensor) -> str:
    """Hash of tensors on the CPU."""
    return hashlib.sha256(b"".join(column.numpy().tobytes() for column in columns)).hexdigest()


def has_fixed_order(trainer: pl.Trainer) -> bool:
    """Whether all validation loaders are known to give the same samples in the same order in every run."""
    for loader in CombinedLoader(trainer.val_dataloaders, "sequential").flattened:
        # Beside a batch sampler of its own, a loader has a sequential sampler, which it does not ask.
        usual = isinstance(loader, DataLoader) and type(loader.batch_sampler) in (BatchSampler, NoneType)
        sampler = loader.sampler if usual else None
        shuffled = isinstance(sampler, DistributedSampler) and sampler.shuffle
        if not isinstance(sampler, SequentialSampler | DistributedSampler) or shuffled:
            return False
    return True
