"""CAE as a LightningModule: `Trainer().predict(CAE(n_clusters=10), datamodule=…)`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cae import pipeline
from cae.config import DEFAULT_ENCODER, CAEConfig, Preset
from cae.encoders import Encoder, load_encoder
from cae.state import FittedCAE, ModelError
from cae.text import TextBank, build_bank, load_corpus

IMAGE_KEYS = ("image", "images", "pixel_values", "embedding", "embeddings")


class CAE(pl.LightningModule):
    """Training-free image clustering with nouns and captions (arXiv 2512.00904).

    `trainer.predict` on a fresh module encodes every image once, fits on all of them at the end of the epoch and
    returns the predictions; on a fitted module (loaded, or after a first predict) it only predicts, batch by batch.
    While a fresh module collects, the tensors that `predict_step` returns are placeholders (label -1); they are
    filled in place at the end of the epoch.

    Batches may be images (B, 3, H, W), embeddings (B, D), a tuple or list that begins with one of them, or a dict with
    one of them under `image`, `images`, `pixel_values`, `embedding` or `embeddings`.

    Args:
        n_clusters: K, or "auto" to find it out.
        preset: `auto` (decides from the images what the texts may weigh), `default` (our fixed setting), `paper` (the
            letter of the equations) or `tac` (the training-free baseline).
        encoder: a spec for `cae.encoders.load_encoder`, or an `Encoder`.
        encoder_weights: a local weights file for `open_clip` encoders, in place of a download.
        nouns: `wordnet`, `imagenet22k` or a text file, one noun a line.
        captions: `flickr30k`, `glosses` or a text file, one caption a line.
        return_embeddings: hand back the image embeddings with the predictions.
        settings: any field of `cae.config.CAEConfig`, changing the preset.

    Raises:
        ValueError: a setting is unknown or out of range.
        EncoderError, TextError: from `setup` or the fit, when weights or texts cannot be had.
    """

    def __init__(
        self,
        n_clusters: int | Literal["auto"],
        *,
        preset: Preset = "auto",
        encoder: str | Encoder = DEFAULT_ENCODER,
        encoder_weights: str | os.PathLike[str] | None = None,
        nouns: str = "imagenet22k",
        captions: str = "glosses",
        return_embeddings: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        spec = encoder if isinstance(encoder, str) else encoder.spec
        self.config = CAEConfig.from_preset(preset, n_clusters, **settings)
        # Spelled out rather than collected: a checkpoint must hold plain values, and `encoder` may be an object.
        self.save_hyperparameters(
            {
                "n_clusters": n_clusters,
                "preset": preset,
                "encoder": spec,
                "encoder_weights": os.fspath(encoder_weights) if encoder_weights else None,
                "nouns": nouns,
                "captions": captions,
                "return_embeddings": return_embeddings,
                **settings,
            },
            logger=False,
        )
        self.encoder_spec = spec
        self._encoder: Encoder | None = None if isinstance(encoder, str) else encoder
        self.encoder_weights = encoder_weights
        self.sources = {"noun": nouns, "caption": captions}
        self.return_embeddings = return_embeddings
        self.fitted: FittedCAE | None = None
        self._banks: dict[str, TextBank] = {}
        self._collected: list[tuple[Tensor, dict[str, Tensor]]] = []

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use."""
        if self._encoder is None:
            weights = Path(self.encoder_weights) if self.encoder_weights else None
            self._encoder = load_encoder(self.encoder_spec, weights=weights)
        return self._encoder

    def on_predict_start(self) -> None:
        """Bring the encoder and the state to the trainer's device, and refuse a state of another encoder.

        Raises:
            ModelError: fitted with another encoder.
            RuntimeError: a fresh module on several processes, each of which would fit to its own share of the images.
        """
        self._collected = []
        if self.fitted is None and self.trainer.world_size > 1:
            raise RuntimeError(
                f"a CAE cannot be fitted on {self.trainer.world_size} processes yet; fit with devices=1, then predict "
                "with as many as you like"
            )
        self.encoder.to(self.device)
        if self.fitted is not None:
            check_encoder(self.fitted, self.encoder)
            self.fitted = self.fitted.to(self.device)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Image batch to embeddings, counterparts, fusion and nearest centroid; or collect, on a fresh module.

        Returns:
            The fields of `cae.pipeline.Prediction` for B images, on the CPU; `index` if the batch is a dict that has
            one; `embedding` (B, D) float32 unit rows with `return_embeddings=True`.
        """
        x = self.embed(_images_of(batch))
        if self.fitted is not None and len(x):
            # The trainer's precision is for the encoder: labels must not depend on it beyond that.
            with torch.autocast(self.device.type, enabled=False):
                result = _on_cpu(pipeline.predict(x, self.fitted))
        else:
            result = _on_cpu(_placeholder(len(x), self.config))
            if self.fitted is None:
                self._collected.append((x, result))
        if isinstance(batch, Mapping) and "index" in batch:
            result["index"] = batch["index"].cpu()
        if self.return_embeddings:
            result["embedding"] = x.cpu()
        return result

    def on_predict_epoch_end(self) -> None:
        """On a fresh module: fit on everything collected, and fill in the predictions already handed out."""
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

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), or embeddings (B, D), to unit rows (B, D) float32 on the module's device.

        Raises:
            ValueError: neither images nor embeddings, or embeddings of another width than the fitted ones.
        """
        if images.ndim == 4:
            return (
                self.encoder.encode_images(images)
                if len(images)
                else torch.empty(0, self.encoder.dim, device=self.device)
            )
        if images.ndim == 2 and images.is_floating_point():
            return normalize(images.to(self.device).float(), dim=1)
        raise ValueError(
            f"expected images (B, 3, H, W) or embeddings (B, D), got a {images.dtype} tensor of shape "
            f"{tuple(images.shape)}"
        )

    def fit_embeddings(self, x: Tensor) -> pipeline.Prediction:
        """Fit on image embeddings (N, D), unit rows; returns their predictions."""
        banks = self.load_banks()
        self.fitted, prediction = pipeline.fit(x, banks, self.config, provenance(self.encoder, banks))
        return prediction

    def load_banks(self, reporter: Callable[[str], Callable[[int, int], None]] | None = None) -> dict[str, TextBank]:
        """The embedded corpora that the config's modalities need; from the cache where they are in it.

        Args:
            reporter: called with `nouns` and `captions`; returns what takes the progress of that bank as (done, total).

        Raises:
            TextError: a corpus cannot be had.
        """
        for modality in self.config.modalities:
            if modality not in self._banks:
                report = reporter(f"{modality}s") if reporter else None
                corpus = load_corpus(modality, self.sources[modality])
                self._banks[modality] = build_bank(corpus, self.encoder, progress=report)
                if report:
                    report(len(corpus.texts), len(corpus.texts))  # a bank from the cache reports nothing itself
        return self._banks

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted model as a folder with `model.safetensors` and `config.json`.

        Raises:
            ModelError: not fitted yet.
        """
        if self.fitted is None:
            raise ModelError("this CAE is not fitted yet; run trainer.predict on it first")
        self.fitted.save(folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Load a folder written by `save_pretrained`.

        Args:
            folder: the model folder.
            overrides: `encoder`, `encoder_weights` or `return_embeddings` of the constructor.

        Raises:
            ModelError: no model folder, damaged, or of a newer format.
        """
        fitted = FittedCAE.load(folder)
        settings: dict[str, Any] = {field: getattr(fitted.config, field) for field in CAEConfig.__dataclass_fields__}
        module = cls(**{"encoder": fitted.provenance["encoder"]["spec"], **settings, **overrides})
        module.fitted = fitted
        return module

    def get_extra_state(self) -> dict[str, Any]:
        """The fitted state as tensors and plain values: PyTorch's way into `state_dict` and so into checkpoints."""
        return {} if self.fitted is None else self.fitted.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`.

        Raises:
            ModelError: written by a newer version, or damaged.
        """
        self.fitted = FittedCAE.from_state_dict(state) if state else None


def check_encoder(fitted: FittedCAE, encoder: Encoder) -> None:
    """Refuse to compare vectors of two encoders.

    Raises:
        ModelError: the state was fitted with an encoder of another fingerprint.
    """
    expected = fitted.provenance.get("encoder", {})
    if expected and expected["fingerprint"] != encoder.fingerprint:
        raise ModelError(
            f"the model was fitted with encoder {expected['spec']} ({expected['fingerprint']}), but this one is "
            f"{encoder.spec} ({encoder.fingerprint}); load the same encoder and weights, or fit again"
        )


def provenance(encoder: Encoder, banks: Mapping[str, TextBank]) -> dict[str, Any]:
    """What a result was made from: encoder, corpora with counts and hashes, versions."""
    packages = ("cae-clustering", "torch", "lightning", "faiss-cpu", "open_clip_torch", "numpy")
    return {
        "encoder": {"spec": encoder.spec, "fingerprint": encoder.fingerprint, "dim": encoder.dim},
        "corpora": {modality: bank.provenance() for modality, bank in banks.items()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _images_of(batch: Any) -> Tensor:
    """The images or embeddings of a batch, however the user's DataModule packs them."""
    if isinstance(batch, Mapping):
        for key in IMAGE_KEYS:
            if key in batch:
                return _images_of(batch[key])
        raise ValueError(f"a dict batch needs one of the keys {', '.join(IMAGE_KEYS)}; this one has {', '.join(batch)}")
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and batch:
        return _images_of(batch[0])
    raise ValueError(f"expected a batch of images or embeddings as tensor, tuple or dict, got {type(batch).__name__}")


def _placeholder(n: int, config: CAEConfig) -> pipeline.Prediction:
    """Predictions to be filled in: label -1, the rest NaN."""
    label, number = torch.full((n,), -1), torch.full((n,), float("nan"))
    beta = torch.full((n, 1 + len(config.modalities)), float("nan"))
    return pipeline.Prediction(label, number, label.clone(), number.clone(), beta)


def _on_cpu(found: pipeline.Prediction) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in found._asdict().items()}
