"""Images to embeddings under a Trainer: `Trainer(max_epochs=1).fit(Embedder(store="embeddings"), datamodule=…)`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize
from torch.utils.data import DistributedSampler
from torchvision.transforms.functional import to_pil_image

from cae.config import DEFAULT_ENCODER
from cae.data.embedding_store import EmbeddingStore
from cae.encoders import Encoder, load_encoder
from cae.encoders.deferred import maker
from cae.models.batches import images_of, index_of, unprepared
from cae.utils.cache import cache_dir
from cae.utils.checksums import json_hash
from cae.utils.distributed import all_reduce_min
from cae.utils.progress import Progress
from cae.utils.termination import Terminated

if TYPE_CHECKING:
    from cae.data import ImageData

LOADER_SHIFT = 40
"""A sample's id is its index + (dataloader_idx << LOADER_SHIFT), so that ids of several loaders never collide."""


_OTHER_LIGHTNING = (
    "{} is a module of the package `lightning`, and this program has imported `pytorch_lightning`, whose Trainer takes "
    "its own modules only: run it by `from lightning import Trainer`. The callbacks of cae work with both"
)


class Embedder(pl.LightningModule):
    """Encodes every image once into an `EmbeddingStore`: one epoch of `trainer.fit`, without any training.

    Batches may be images (B, 3, H, W), embeddings (B, D), a tuple or list that begins with one of them, or a dict with
    one of them under `image`, `images`, `pixel_values`, `embedding` or `embeddings`. A dict may tell the images apart
    by `index` (B,) int64; else they are counted in the order of the loader, whose sampler is known.

    With a folder as store, an interrupted run goes on where it stopped, if the data module says what its images are
    (`identity`, as those of `cae.data` do); what the store has is then not even read. On several processes each writes
    a store of its own below the folder.

    Args:
        encoder: a spec for `cae.encoders.load_encoder`, or an `Encoder`.
        encoder_weights: a local weights file for `open_clip` encoders, in place of a download.
        store: a folder for the embeddings, mapped into memory from there; None keeps them in memory.
        dtype: dtype that embeddings are rounded to, `float32` or `float16`.

    Raises:
        ValueError: another dtype.
        EncoderError, StoreError: from `setup`, when weights cannot be had or the folder cannot be written.

    Examples:
        >>> from cae.data import ImageFolderData
        >>> quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        >>> embedder = Embedder("open_clip:ViT-B-32/openai")
        >>> trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, **quiet)
        >>> trainer.fit(embedder, datamodule=ImageFolderData("photos", num_workers=0))
        >>> embedder.store.rows.shape
        torch.Size([30, 48])
    """

    def __init__(
        self,
        encoder: str | Encoder = DEFAULT_ENCODER,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        store: str | os.PathLike[str] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__()
        if "pytorch_lightning" in sys.modules:
            warnings.warn(_OTHER_LIGHTNING.format(type(self).__name__), UserWarning, stacklevel=2)
        if dtype not in ("float32", "float16"):
            raise ValueError(f"embeddings are kept as float32 or float16, not {dtype!r}")
        self.automatic_optimization = False
        self.encoder_spec = encoder if isinstance(encoder, str) else encoder.spec
        self._encoder: Encoder | None = None if isinstance(encoder, str) else encoder
        self.encoder_weights = encoder_weights
        self.store_folder = store
        self.embedding_dtype = dtype
        self.store: EmbeddingStore | None = None
        self._n_seen: Counter[int] = Counter()
        self._shuffled: dict[int, Tensor] = {}
        self._looked_at = False

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at first use."""
        if self._encoder is None:
            weights = Path(self.encoder_weights) if self.encoder_weights else None
            self._encoder = load_encoder(self.encoder_spec, weights=weights)
        return self._encoder

    @property
    def group(self) -> ProcessGroup | None:
        """The processes that share the images; None for one."""
        return dist.group.WORLD if self.trainer.world_size > 1 else None

    def setup(self, stage: str) -> None:
        """Open the store, before the data module is asked for a loader; DDP wraps nothing that has no parameter."""
        if stage == "fit":
            self.open_store()
            if isinstance(self.trainer.strategy, DDPStrategy):
                self.anchor = torch.nn.Parameter(torch.zeros(1))

    def teardown(self, stage: str) -> None:
        """Close the store."""
        if stage == "fit" and hasattr(self, "anchor"):
            del self.anchor
        self._close_store()

    def configure_callbacks(self) -> list[pl.Callback]:
        """A callback that closes the store after an exception: Lightning notifies only callbacks."""
        # Add it only once: Lightning prints a notice when a callback is replaced.
        there = any(isinstance(callback, _CloseStore) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if there else [_CloseStore()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the parameter that is only there for DDP."""
        checkpoint["state_dict"].pop("anchor", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lack no parameter that is only there for DDP."""
        if hasattr(self, "anchor"):
            checkpoint["state_dict"]["anchor"] = self.anchor

    def configure_optimizers(self) -> list[Any]:
        """None: nothing is trained."""
        return []

    def on_fit_start(self) -> None:
        """Bring the encoder to the trainer's device."""
        self.encoder.to(self.device)
        # The trials of BatchSizeFinder have run before and ended as a fit does. What they embedded is in the store.
        self.trainer.should_stop = False

    def on_train_start(self) -> None:
        """Refuse several loaders: Lightning puts a batch of each into one, of which the first would be taken alone.

        Raises:
            ValueError: there are several.
        """
        loaders = self.trainer.train_dataloader
        if isinstance(loaders, list | tuple | dict) and len(loaders) > 1:
            raise ValueError(
                f"a fit takes one loader, got {len(loaders)}: join their data sets (torch.utils.data.ConcatDataset), "
                "or call trainer.predict, which takes several"
            )

    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Encode a batch into the store."""
        self.collect(batch)

    def on_train_epoch_end(self) -> None:
        """Stop after one epoch. Count it as one step, so that ModelCheckpoint sees a change."""
        assert self.store is not None  # since setup
        self.store.finish()
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_completed()
        self.trainer.should_stop = True

    def open_store(self) -> None:
        """Open the store, with what an earlier run has left in it."""
        self._close_store()
        self._n_seen.clear()
        folder, identity = None, getattr(self.trainer.datamodule, "identity", None)  # type: ignore[attr-defined]
        # Images without an identity are embedded every time.
        known = {"data": identity, "encoder": self.encoder.fingerprint} if identity else {"data": os.urandom(16).hex()}
        if self.store_folder is not None:
            folder = Path(self.store_folder) / f"{self.trainer.global_rank}-of-{self.trainer.world_size}"
        self.store = EmbeddingStore(
            self.encoder.dim,
            dtype=getattr(torch, self.embedding_dtype),
            folder=folder,
            identity={**known, "precision": str(self.trainer.precision)},
        )
        # Drop what a rank had ahead of the others, since images may be shared out differently now.
        self.store.keep_up_to(self.done() - 1)

    def done(self) -> int:
        """Number of leading images that are done: embedded, or left out since they cannot be read.

        All ranks load images in the order of their ids, so it follows from the smallest of their largest ids.
        """
        last = -1 if self.store is None else self.store.last
        return int(all_reduce_min(torch.tensor(last), self.group)) + 1

    def collect(self, batch: Any, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Store a batch; returns its ids (B,) int64 on the CPU, and its embeddings (B, D) as the store keeps them."""
        assert self.store is not None  # since setup
        images = images_of(batch)
        index = self._sample_ids(batch, len(images), dataloader_idx)
        known = self.store.find(index)
        if len(known) and (known >= 0).all():
            return index, self.store.rows[known].to(self.device)
        x = self.embed(images)
        self.store.append(index, x)
        return index, x

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), or embeddings (B, D), to unit rows (B, D) on the module's device, in the store's dtype.

        Raises:
            ValueError: neither images nor embeddings, or those of another encoder.
        """
        dtype: torch.dtype = getattr(torch, self.embedding_dtype)
        if images.ndim == 4:
            if not len(images):
                return torch.empty(0, self.encoder.dim, dtype=dtype, device=self.device)
            images = self._preprocessed(images)
            # Autocast may have returned half precision: normalise again in float32.
            return normalize(self.encoder.encode_images(images.float()).float(), dim=1).to(dtype)
        if images.ndim == 2 and images.is_floating_point():
            if images.shape[1] != self.encoder.dim:
                raise ValueError(
                    f"expected embeddings of width {self.encoder.dim}, that of {maker(self.encoder)}, got "
                    f"{tuple(images.shape)}; embed with the same encoder, or give the one that was used"
                )
            return normalize(images.to(self.device).float(), dim=1).to(dtype)
        raise ValueError(
            f"expected images (B, 3, H, W) or embeddings (B, D), got a {images.dtype} tensor of shape "
            f"{tuple(images.shape)}"
        )

    def _preprocessed(self, images: Tensor) -> Tensor:
        """Images as the encoder expects them. Bytes are preprocessed; floats that were not bring a warning."""
        if images.dtype == torch.uint8:
            return torch.stack([self.encoder.preprocess(to_pil_image(image)) for image in images.cpu()])
        if not self._looked_at:
            self._looked_at = True
            if reason := unprepared(images, self.encoder):
                warnings.warn(
                    f"these images {reason}: they were not preprocessed for {maker(self.encoder)}, and the clusters "
                    "will be poor; give their data set transform=model.encoder.preprocess, or pass bytes (uint8)",
                    UserWarning,
                    stacklevel=2,
                )
        return images

    def _sample_ids(self, batch: Any, n: int, dataloader_idx: int) -> Tensor:
        """The ids (B,) of a batch's samples, the same however many processes share them."""
        if (given := index_of(batch, n)) is not None:
            index = given
        else:
            start = self._n_seen[dataloader_idx]
            self._n_seen[dataloader_idx] += n
            index = self._ids_from_sampler(start, n, dataloader_idx)
        return index + (dataloader_idx << LOADER_SHIFT)

    def _ids_from_sampler(self, start: int, n: int, dataloader_idx: int) -> Tensor:
        """The indices that a loader's sampler gave this rank, from the `start`-th on, n of them."""
        trainer = self.trainer
        loaders = {"fit": trainer.train_dataloader, "predict": trainer.predict_dataloaders}.get(
            trainer.state.fn or "", trainer.test_dataloaders
        )
        loader = loaders[dataloader_idx] if isinstance(loaders, list | tuple) else loaders
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        if type(sampler) is DistributedSampler and sampler.shuffle:  # as Lightning makes them for training
            if start == 0:  # once: an order of all samples for each batch would take N² in all
                self._shuffled[dataloader_idx] = torch.tensor(list(sampler))
            return self._shuffled[dataloader_idx][start : start + n]
        index = torch.arange(start, start + n) * trainer.world_size + trainer.global_rank
        # A DistributedSampler fills up with samples from the front.
        return index % len(sampler.dataset) if isinstance(sampler, DistributedSampler) else index  # type: ignore[arg-type]

    def _close_store(self) -> None:
        if self.store is not None:
            self.store.close()


class _CloseStore(pl.Callback):
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, Embedder):
            pl_module._close_store()


def embed_images(
    data: ImageData,
    encoder: Encoder,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Embed images in the cache, going on where an earlier run stopped; Lightning itself says nothing.

    Args:
        data: images with an identity, without which they are embedded each time.
        encoder: encodes them.
        device: device to encode on.
        progress: called with the number of images embedded so far and in all.

    Returns:
        (N', D) float32 unit rows, mapped from the cache, and (N',) int64 positions of the images that can be read.

    Raises:
        StoreError: the cache cannot be written.
        RuntimeError: a process that reads images has died.
        KeyboardInterrupt: as usual. What is done is kept in either case.
    """
    device, total = torch.device(device), len(data.images)
    key = json_hash([encoder.fingerprint, data.identity])[:32]
    embedder = Embedder(encoder, store=cache_dir() / "embeddings" / key)

    def advance(*_: Any) -> None:
        if progress:
            progress(min(embedder.done(), total), total)

    try:
        fit_silently(
            embedder, device, 1, LambdaCallback(on_train_start=advance, on_train_batch_end=advance), datamodule=data
        )
    except (RuntimeError, EOFError, ConnectionError) as error:
        # A broken connection to a worker is another sign that it has died.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            "a process that reads pictures has died, as when memory runs out; what is embedded so far is kept: run "
            "again to go on, with fewer --workers (0 for none)"
        ) from error
    finally:
        # `_CloseStore` may not have run: the signal that torch sends for a dead worker can interrupt callbacks, too.
        embedder._close_store()
    if progress:
        progress(total, total)
    assert embedder.store is not None  # since setup
    order = embedder.store.index.argsort()
    in_order = bool((order.diff() > 0).all())
    return embedder.store.rows if in_order else embedder.store.rows[order], embedder.store.index[order]


def fit_silently(
    module: pl.LightningModule,
    device: torch.device,
    max_epochs: int,
    callback: pl.Callback,
    *,
    datamodule: pl.LightningDataModule | None = None,
) -> None:
    """`trainer.fit` with a Trainer that the user did not make, and so without its log lines, hints and files.

    Raises:
        KeyboardInterrupt: as usual; Lightning answers Ctrl-C with an exit.
        Terminated: at SIGTERM, which Lightning takes note of.
    """
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The caller has chosen the number of workers, and validation is for the user's own Trainer.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*worker processes in total.*")
            warnings.filterwarnings("ignore", message=".*validation_step.*no `val_dataloader`.*")
            trainer = pl.Trainer(
                accelerator=device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                callbacks=[callback],
                max_epochs=max_epochs,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            try:
                trainer.fit(module, datamodule=datamodule)
            except BaseException as error:
                # The same signal may have ended processes that read images, whose end then is the error.
                if trainer.received_sigterm:
                    raise Terminated from error
                if isinstance(error, SystemExit) and trainer.interrupted:
                    raise KeyboardInterrupt from error
                raise
    finally:
        log.setLevel(level)
