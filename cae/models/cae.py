"""CAE as a LightningModule: `Trainer().predict(CAE(n_clusters=10), datamodule=…)`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cae.config import DEFAULT_ENCODER, CAEConfig, Preset
from cae.data import EmbeddingData, ImageData
from cae.encoders import Encoder
from cae.encoders.deferred import deferred, is_loaded
from cae.method import pipeline
from cae.method.fitted import FittedCAE, ModelError
from cae.method.fusion import collapsed_modality
from cae.method.provenance import check_encoder, encoder_of, provenance
from cae.models.batches import images_of, index_of, labels_of, refuse_repeats
from cae.models.embedder import Embedder
from cae.models.pending import PendingPredictions, on_cpu
from cae.models.scoring import ScoreCollector
from cae.models.signature import given_settings, spell_out_settings
from cae.text import TextBank, load_banks
from cae.text.vectors import (
    check_sources,
    check_width,
    is_vectors,
    limit_modalities,
    text_sources,
    texts_for_embeddings,
)
from cae.utils.devices import float64_device
from cae.utils.distributed import all_reduce_count, all_reduce_sum, first_occurrence_mask, is_first
from cae.utils.progress import Reporter, silent

logger = logging.getLogger(__name__)


@spell_out_settings
class CAE(Embedder):
    """Training-free image clustering with nouns and captions (arXiv 2512.00904).

    `trainer.fit` encodes every image once and fits on all of them: one epoch, nothing is trained. `trainer.predict`
    labels images batch by batch; on a module that is not fitted it does both in one pass. While it collects, the
    tensors that `predict_step` returns are placeholders (label -1); they are filled in place with the last batch.
    `trainer.test` logs NMI, ACC and ARI against the labels of the batches. On several processes each holds its share
    of the images and all end up with the same state; samples that a sampler repeats count once.

    Batches, `encoder`, `encoder_weights`, `store` and `dtype` are those of `Embedder`.

    Args:
        n_clusters: K, or "auto" to find it out.
        preset: `auto` (decides from the images what the texts may weigh), `default` (our fixed setting), `paper` (the
            letter of the equations) or `tac` (the training-free baseline).
        encoder: a spec for `cae.encoders.load_encoder`, or an `Encoder`.
        encoder_weights: a local weights file for `open_clip` encoders, in place of a download.
        nouns: `wordnet`, `imagenet22k`, a text file, one noun a line, or text vectors of the images' encoder: .npy,
            .safetensors or .parquet with their texts inside or beside (`cae.text.load_vectors`). By default
            `imagenet22k`, or none where the captions are vectors.
        captions: `flickr30k`, `glosses`, a text file, one caption a line, or text vectors. By default `glosses`, or
            none where the nouns are vectors. With vectors alone, and batches of embeddings, no encoder is loaded.
        return_embeddings: hand back the image embeddings with the predictions.
        store: a folder for the embeddings of a fit, so that it can be interrupted and need not have them in memory.
        dtype: dtype that embeddings are rounded to, `float32` or `float16`.
        settings: any field of `cae.config.CAEConfig`, changing the preset; None leaves it as it is.

    Raises:
        ValueError: a setting is unknown or out of range.
        EncoderError, TextError, StoreError: from `setup` or the fit, when weights or texts cannot be had, or the folder
            cannot be written.

    Examples:
        Embeddings and vectors of nouns that were made elsewhere need no encoder:

        >>> import lightning.pytorch as pl
        >>> from cae.data import EmbeddingData
        >>> model = CAE(3, nouns="nouns.npy")
        >>> data = EmbeddingData("embeddings.npy")
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> batches = trainer.predict(model, datamodule=data)
        >>> len(torch.cat([batch["cluster"] for batch in batches])), len(model.fitted.clusters)
        (30, 3)
    """

    method: ClassVar[str] = "cae"
    """Name of the method in the fitted state."""

    def __init__(
        self,
        n_clusters: int | Literal["auto"],
        *,
        preset: Preset = "auto",
        encoder: str | Encoder = DEFAULT_ENCODER,
        encoder_weights: str | os.PathLike[str] | None = None,
        nouns: str | os.PathLike[str] | None = None,
        captions: str | os.PathLike[str] | None = None,
        return_embeddings: bool = False,
        store: str | os.PathLike[str] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        **settings: Any,
    ) -> None:
        super().__init__(encoder, encoder_weights=encoder_weights, store=store, dtype=dtype)
        settings = given_settings(settings)
        self.config = CAEConfig.from_preset(preset, n_clusters, **settings)
        self.sources = text_sources(nouns, captions)
        if "modalities" not in settings:
            self.config = limit_modalities(self.config, self.sources)
        # Spelled out rather than collected: a checkpoint must hold plain values, and `encoder` may be an object.
        self.save_hyperparameters(
            {
                "n_clusters": n_clusters,
                "preset": preset,
                "encoder": self.encoder_spec,
                "encoder_weights": os.fspath(encoder_weights) if encoder_weights else None,
                "nouns": os.fspath(nouns) if nouns else None,
                "captions": os.fspath(captions) if captions else None,
                "return_embeddings": return_embeddings,
                "dtype": dtype,
                **settings,
            },
            logger=False,
            # Lightning looks for the values of the signature in this frame, which has them as `settings`.
            frame=sys._getframe().f_back,
        )
        self.return_embeddings = return_embeddings
        self.fitted: FittedCAE | None = None
        self._banks: dict[str, TextBank] = {}
        self._pending = PendingPredictions()
        self._tested = ScoreCollector()

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use: once there is something to encode, if fitted or given text vectors.

        Raises:
            TextError: texts that a fit needs are not there, which is told before an encoder is downloaded.
            EncoderError: it cannot be had.
        """
        if self._encoder is None and self.fitted is None:
            check_sources([name for name in self.config.modalities if name not in self._banks], self.sources)
        if self._encoder is None and (vectors := self._given_vectors()) is not None:
            dim, given = vectors
            weights = Path(self.encoder_weights) if self.encoder_weights else None
            self._encoder = deferred(self.encoder_spec, weights=weights, dim=dim, given=given)
        with self._texts_for_data():
            return super().encoder

    @property
    def method_device(self) -> torch.device:
        """Where the method works: the module's device, or the CPU if that has no float64."""
        return float64_device(self.device)

    def _texts_for_data(self) -> AbstractContextManager[None]:
        """What to say where the encoder cannot be had, by what the trainer's data are known to hold."""
        data = None if self._trainer is None else self._trainer.datamodule  # type: ignore[attr-defined]
        if self._trainer is None or isinstance(data, ImageData):
            return nullcontext()
        return texts_for_embeddings("EmbeddingData" if isinstance(data, EmbeddingData) else None)

    def _given_vectors(self) -> tuple[int, str] | None:
        """Width and name of the vectors that this module works with, None where they come from its encoder."""
        if self.fitted is not None:
            return self.fitted.means.shape[1], "the fitted model"
        sources = [self.sources.get(modality) for modality in self.config.modalities]
        if not all(source is not None and is_vectors(source) for source in sources):
            return None
        return self.load_banks()[self.config.modalities[0]].embeddings.shape[1], str(sources[0])

    def teardown(self, stage: str) -> None:
        """Free the embeddings: only the fitted state is needed from here on."""
        super().teardown(stage)
        self.store = None

    def on_train_epoch_end(self) -> None:
        """Fit on everything collected."""
        super().on_train_epoch_end()
        self._fit()

    def on_predict_start(self) -> None:
        """Bring the encoder and the state to the trainer's device, and refuse a state of another encoder.

        Raises:
            ModelError: fitted with another encoder.
        """
        self._pending = PendingPredictions()
        self.encoder.to(self.device)
        if self.fitted is None:
            self.open_store()
        else:
            if is_loaded(self.encoder):  # else when there is something to encode
                check_encoder(self.fitted, self.encoder)
            self.fitted = self.fitted.to(self.method_device)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Image batch to embeddings, counterparts, fusion and nearest centroid; or collect, on a fresh module.

        Returns:
            The fields of `cae.method.pipeline.Prediction` for B images, on the CPU; `index` if the batch is a dict that
            has one; `embedding` (B, D) float32 unit rows with `return_embeddings=True`.
        """
        if self.fitted is None:
            index, x = self.collect(batch, dataloader_idx)
            result = self._pending.add(index, n_modalities=1 + len(self.config.modalities))
            if self.trainer.predict_loop.batch_progress.is_last_batch:  # type: ignore[attr-defined]
                self._fit_and_fill()
        else:
            x = self.embed(images_of(batch))
            result = on_cpu(self.predict_embeddings(x))
        if (given := index_of(batch, len(x))) is not None:
            result["index"] = given
        if self.return_embeddings:
            result["embedding"] = x.float().cpu()
        return result

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Label a batch without a Trainer, on a fitted module: `model(images)`.

        Args:
            images: (B, 3, H, W) from the encoder's `preprocess`, or bytes; or embeddings (B, D).

        Returns:
            The fields of `cae.method.pipeline.Prediction` for B images, on the CPU.

        Raises:
            ModelError: not fitted yet, or fitted with another encoder.
            TypeError: no tensor.
        """
        if self.fitted is None:
            raise self._not_fitted()
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images: expected a torch.Tensor, got {type(images).__name__}; stack what model.encoder.preprocess "
                "makes of pictures, or pass torch.as_tensor(images)"
            )
        self.encoder.to(self.device)
        with torch.no_grad():
            return on_cpu(self.predict_embeddings(self.embed(images)))

    def on_predict_epoch_end(self) -> None:
        """Fit, on a process that has had no batch to do it with."""
        if self.fitted is None:
            self._fit_and_fill()

    def on_test_start(self) -> None:
        """Prepare as for prediction.

        Raises:
            ModelError: not fitted yet, or with another encoder.
        """
        if self.fitted is None:
            raise self._not_fitted()
        self._tested = ScoreCollector()
        self._n_seen.clear()
        self.on_predict_start()

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Label a batch and keep its classes.

        Raises:
            ValueError: the batch has no classes, or one below 0.
        """
        labels = labels_of(batch)
        if labels is None:
            raise ValueError("testing needs whole-numbered classes: batches (images, label), or dicts with `label`")
        if (labels < 0).any():
            raise ValueError(f"a class of the test data is {int(labels.min())}: leave out images without a class")
        x = self.embed(images_of(batch))
        found = on_cpu(self.predict_embeddings(x))
        index = self._sample_ids(batch, len(x), dataloader_idx)
        self._tested.add(index, found, labels.cpu())

    def on_test_epoch_end(self) -> None:
        """Log `test/nmi`, `test/acc` and `test/ari`, and the means `test/confidence` and `test/similarity`.

        The last two need no classes: how far images are from the border to the next cluster, and how close to the
        centroid of their own.

        Raises:
            ValueError: there was nothing to test on.
        """
        assert self.fitted is not None  # since the start
        tested, self._tested = self._tested, ScoreCollector()
        scores = tested.scores(self.fitted.config.n_clusters, self.group)
        # The same on every rank, so that reducing them again changes nothing; Lightning warns without. It reduces them
        # where they are, and NCCL takes nothing from the CPU.
        logged = {f"test/{name}": torch.tensor(value, device=self.device) for name, value in scores.items()}
        self.log_dict(logged, sync_dist=True)

    def fit_embeddings(
        self, x: Tensor, index: Tensor | None = None, *, group: ProcessGroup | None = None
    ) -> pipeline.Prediction:
        """Fit on image embeddings (N, D), unit rows; returns their predictions. See `cae.method.pipeline.fit`."""
        banks = self.load_banks()
        check_width(banks, self.sources, x.shape[1], "the data")
        record = self._provenance()
        self.fitted, prediction = pipeline.fit(x, banks, self.config, record, index=index, group=group)
        mean_beta = all_reduce_sum(prediction.beta.sum(dim=0), group) / all_reduce_count(len(x), group)
        collapsed = collapsed_modality(mean_beta.tolist(), self.fitted.config)
        if collapsed and is_first(group):
            logger.warning("the fusion has collapsed to the %s embeddings; a larger gamma mixes more", collapsed)
        return prediction

    def predict_embeddings(self, x: Tensor) -> pipeline.Prediction:
        """Label image embeddings (B, D), unit rows on any device; predictions lie on that of the fitted state.

        Raises:
            ModelError: not fitted yet.
        """
        if self.fitted is None:
            raise self._not_fitted()
        x = x.to(self.fitted.means.device)
        # The trainer's precision applies to the encoder only.
        with torch.autocast(x.device.type, enabled=False):
            return pipeline.predict(x, self.fitted)

    def embed(self, images: Tensor) -> Tensor:
        """See `Embedder.embed`; on a fitted module images are encoded as they were for the fit.

        Raises:
            ModelError: fitted with another encoder.
        """
        if self.fitted is not None and images.ndim == 4:
            check_encoder(self.fitted, self.encoder)
        return super().embed(images)

    def _provenance(self) -> dict[str, Any]:
        return {**provenance(self.encoder, self.load_banks()), "embedding_dtype": self.embedding_dtype}

    def _not_fitted(self) -> ModelError:
        return ModelError(f"this {type(self).__name__} is not fitted yet; run trainer.fit on it first")

    def _fit(self) -> dict[str, Tensor]:
        """Fit on what the store holds, each image once; the predictions of all its rows, on the CPU."""
        store, group = self.store, self.group
        assert store is not None  # since setup
        if group is None:
            refuse_repeats(store.index)
        keep = first_occurrence_mask(store.index, group)
        if keep.all():
            return self._fit_rows(store.rows, store.index)
        found = self._fit_rows(store.rows[keep], store.index[keep])
        # The other rows are repeats of samples that another rank keeps: they are predicted.
        rest = on_cpu(self.predict_embeddings(store.rows[~keep]))
        at = torch.cat([keep.nonzero(), (~keep).nonzero()]).squeeze(1).argsort()
        return {key: torch.cat([values, rest[key]])[at] for key, values in found.items()}

    def _fit_rows(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        x = x.to(self.method_device)
        with torch.autocast(x.device.type, enabled=False):
            return on_cpu(self.fit_embeddings(x, index, group=self.group))

    def _fit_and_fill(self) -> None:
        """Fit, and put the predictions into the results that the trainer holds already."""
        assert self.store is not None  # since the start
        self.store.finish()
        self._pending.fill(self._fit(), self.store.find)

    def load_banks(self, reporter: Reporter | None = None) -> dict[str, TextBank]:
        """The embedded corpora that the config's modalities need; from the cache where they are in it.

        Args:
            reporter: called with `nouns` and `captions`; returns the progress callback of that bank.
                By default bars are shown, unless the trainer shows none.

        Raises:
            TextError: a corpus cannot be had.
        """
        if reporter is None and self._trainer is not None and self._trainer.progress_bar_callback is None:
            reporter = silent
        missing = [modality for modality in self.config.modalities if modality not in self._banks]
        self._banks |= load_banks(missing, self.sources, lambda: self.encoder, reporter)
        return self._banks

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted model as a folder with `model.safetensors` and `config.json`.

        Raises:
            ModelError: not fitted yet.
        """
        if self.fitted is None:
            raise self._not_fitted()
        self.fitted.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Load a folder written by `save_pretrained`.

        Args:
            folder: the model folder.
            overrides: `encoder`, `encoder_weights` or `return_embeddings` of the constructor.

        Raises:
            ModelError: no model folder, damaged, of a newer format, or of another method.
        """
        fitted = FittedCAE.load(folder)
        if fitted.method != cls.method:
            raise ModelError(f"{folder} holds a model of {fitted.method}, not of {cls.method}")
        settings: dict[str, Any] = {field: getattr(fitted.config, field) for field in CAEConfig.__dataclass_fields__}
        made = {"encoder": encoder_of(fitted)[0], "dtype": fitted.provenance.get("embedding_dtype", "float32")}
        module = cls(**{**made, **settings, **overrides})
        module._adopt(fitted)
        return module

    def _adopt(self, fitted: FittedCAE) -> None:
        self.fitted = fitted

    def get_extra_state(self) -> dict[str, Any]:
        """The fitted state as tensors and plain values: PyTorch's way into `state_dict` and so into checkpoints."""
        return {} if self.fitted is None else self.fitted.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`.

        Raises:
            ModelError: written by a newer version, or damaged.
        """
        if state:
            self._adopt(FittedCAE.from_state_dict(state))
        else:
            self.fitted = None
