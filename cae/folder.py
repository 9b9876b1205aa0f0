"""A folder of pictures, from disk to what is known of each of them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from cae.data import ImageError, ImageFolderData, list_images, read_image
from cae.metrics import clustering_scores
from cae.module import CAE
from cae.pipeline import Prediction, top_texts
from cae.state import FittedCAE
from cae.trained import TrainedClustering

N_REPRESENTATIVES = 9
N_TOP_NOUNS = 3

# Takes what is being worked on (`nouns`, `captions`, `pictures`); returns what takes its progress as (done, total).
Reporter = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class FolderResult:
    """The pictures of a folder with what was found out about them.

    Attributes:
        root: the folder.
        paths: N pictures that could be read, below `root`.
        embeddings: (N, D) float32 unit rows on the CPU.
        prediction: of the same N pictures, on the CPU.
        fitted: the state behind it, on the CPU.
        skipped: pictures that could not be read, with the reason.
    """

    root: Path
    paths: Sequence[Path]
    embeddings: Tensor
    prediction: Prediction
    fitted: FittedCAE
    skipped: dict[Path, str]

    def relative(self, path: Path) -> str:
        """A path below the root as text; bytes that are no UTF-8 show as the replacement character."""
        return os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "replace")

    def folder_labels(self) -> tuple[list[str], Tensor] | None:
        """The top sub-folder of each picture as its class: (names, (N,) int64).

        None unless every picture lies in a sub-folder and there are at least two of them.
        """
        tops = [path.relative_to(self.root).parts for path in self.paths]
        names = sorted({parts[0] for parts in tops})
        if len(names) < 2 or any(len(parts) < 2 for parts in tops):
            return None
        number = {name: i for i, name in enumerate(names)}
        return names, torch.tensor([number[parts[0]] for parts in tops])

    def scores(self, labels: Tensor) -> dict[str, float]:
        """NMI, ACC and ARI in percent of any labels (N,) against the sub-folders; empty without `folder_labels`."""
        folders = self.folder_labels()
        return {} if folders is None else clustering_scores(labels, folders[1])

    def weights(self) -> dict[str, Tensor]:
        """Beta of Eq. 16 by modality, each (N,) float32; zero for a modality that the settings leave out."""
        present = dict(zip(("image", *self.fitted.config.modalities), self.prediction.beta.unbind(dim=1), strict=True))
        absent = torch.zeros(len(self.paths))
        return {modality: present.get(modality, absent) for modality in ("image", "noun", "caption")}

    def assignments(self) -> pa.Table:
        """A row a picture: path, cluster, name, confidence, weights of Eq. 16, and its own top texts."""
        fitted, prediction = self.fitted, self.prediction
        columns: dict[str, Any] = {
            "path": [self.relative(path) for path in self.paths],
            "cluster": prediction.cluster.numpy(),
            "name": [fitted.clusters[k].name for k in prediction.cluster.tolist()],
            "confidence": prediction.confidence.numpy(),
        }
        for modality, weight in self.weights().items():
            columns[f"beta_{modality}"] = weight.numpy()
        columns["top_nouns"] = self._top_texts("noun", N_TOP_NOUNS)
        columns["top_caption"] = [texts[0] if texts else "" for texts in self._top_texts("caption", 1)]
        return pa.table(columns)

    def _top_texts(self, modality: str, k: int) -> list[list[str]]:
        selected = self.fitted.selected.get(modality)
        if selected is None:
            return [[] for _ in self.paths]
        rows = top_texts(self.embeddings, selected, min(k, len(selected.texts))).tolist()
        return [[selected.texts[j] for j in row] for row in rows]

    def clusters(self) -> list[dict[str, Any]]:
        """A record a cluster, with the pictures nearest to its centroid and its size in this folder."""
        records = []
        for cluster in self.fitted.clusters:
            members = (self.prediction.cluster == cluster.id).nonzero().squeeze(1)
            order = self.prediction.similarity[members].argsort(descending=True, stable=True)
            nearest = members[order[:N_REPRESENTATIVES]].tolist()
            records.append(
                {
                    **asdict(cluster),
                    "size": len(members),
                    "representatives": [self.relative(self.paths[i]) for i in nearest],
                }
            )
        return records


def run_folder(
    module: CAE | TrainedClustering,
    root: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    reporter: Reporter,
) -> FolderResult:
    """Predict on a folder, fitting the module first if it is fresh. Texts come before pictures: they fail sooner.

    Args:
        module: with `return_embeddings=True`.
        root: the folder.
        device: where to encode.
        batch_size: pictures encoded at once.
        workers: processes that read pictures.
        reporter: hears of progress.

    Raises:
        ImageError: no such folder, or no picture in it.
        ValueError: fewer pictures than clusters.
        EncoderError, TextError, ModelError: as the module raises them.
    """
    paths = list_images(root)
    if module.fitted is None and len(paths) < module.config.n_clusters:
        raise ValueError(
            f"{root} holds {len(paths)} pictures, too few for {module.config.n_clusters} clusters; "
            "lower --clusters or add pictures"
        )
    module.encoder.to(device)
    if module.fitted is None:
        module.load_banks(reporter)
    data = ImageFolderData(root, batch_size=batch_size, num_workers=workers, paths=paths)
    columns = _predict(module, data, device, reporter)
    readable = columns["index"].tolist()
    assert module.fitted is not None  # by predicting
    return FolderResult(
        root=root,
        paths=[paths[i] for i in readable],
        embeddings=columns["embedding"],
        prediction=Prediction(**{field: columns[field] for field in Prediction._fields}),
        fitted=module.fitted.to("cpu"),
        skipped={paths[i]: _why_unreadable(paths[i]) for i in sorted(set(range(len(paths))) - set(readable))},
    )


def _predict(
    module: CAE | TrainedClustering, data: ImageFolderData, device: torch.device, reporter: Reporter
) -> dict[str, Tensor]:
    """`trainer.predict` with the batches put together; Lightning itself says nothing."""
    fresh, total, report = module.fitted is None, len(data.paths), reporter("pictures")
    report(0, total)

    def advance(_trainer: Any, _module: Any, _outputs: Any, _batch: Any, batch_idx: int, *_: Any) -> None:
        report(min((batch_idx + 1) * data.batch_size, total), total)

    # The fit comes in the module's own hook at the end of the epoch, which runs after those of callbacks.
    grouping: Callable[[int, int], None] | None = None

    def announce(*_: Any) -> None:
        nonlocal grouping
        if fresh:
            grouping = reporter("grouping")
            grouping(0, 1)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=[LambdaCallback(on_predict_batch_end=advance, on_predict_epoch_end=announce)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Whoever called has chosen the number of workers.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            batches = trainer.predict(module, datamodule=data)
        except SystemExit as stop:
            # How Lightning answers Ctrl-C.
            raise KeyboardInterrupt if trainer.interrupted else stop from stop
    if grouping is not None:
        grouping(1, 1)
    assert batches is not None  # the trainer was not told to drop them
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def _why_unreadable(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return "could not be read at first, but can be now"
