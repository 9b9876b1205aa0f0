"""Data modules of images: a folder, a Hugging Face data set, a torchvision data set.

They serve an `Embedder`, and so `CAE`: its encoder says how images are prepared, and its store which of them need no
reading any more. Batches are `ImageBatch` dicts in a fixed order.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from cae.config import DEFAULT_BATCH_SIZE
from cae.data.base import Data
from cae.data.dataset import ImageDataset, Images, collate_readable, files_identity
from cae.data.images import ImageError, read_image, shown_path, upright_rgb
from cae.data.labels import class_numbers
from cae.data.listing import list_images
from cae.metrics.functional import as_labels

if TYPE_CHECKING:
    from cae.encoders import Encoder


class EmbedsImages(Protocol):
    """The part of `cae.models.Embedder` that a data module needs."""

    @property
    def encoder(self) -> Encoder:
        """Says how images are prepared."""

    def done(self) -> int:
        """The number up to which all images have been embedded."""


class ImageData(Data):
    """Images for `trainer.fit`, `predict` and `test`, by an `Embedder` or `CAE`.

    Args:
        images: the images that it serves.
        batch_size: images per batch.
        num_workers: processes that read and preprocess; None for as many as there are cores for, up to 8.

    Examples:
        >>> from cae.data import Images, read_image
        >>> paths = ["photos/red/0.png", "photos/blue/0.png"]
        >>> data = ImageData(Images(lambda index, side: read_image(paths[index], side), paths))
        >>> len(data.images)
        2
    """

    def __init__(self, images: Images, *, batch_size: int = DEFAULT_BATCH_SIZE, num_workers: int | None = None) -> None:
        super().__init__(batch_size, num_workers)
        self.images = images

    @property
    def identity(self) -> str | None:
        """A text that differs where the images do; None where that is not known."""
        return self.images.identity

    def train_dataloader(self) -> DataLoader[Any]:
        """The images that the module's store lacks."""
        # At least one for each process: Lightning skips an epoch without batches, and with it the fit.
        last = len(self.images) - self.attached.world_size
        return self.loader(max(min(self.embedder.done(), last), 0))

    def loader(self, start: int = 0) -> DataLoader[Any]:
        """The images from `start` on."""
        encoder = self.embedder.encoder
        dataset = ImageDataset(self.images, encoder.preprocess, encoder.image_size, start)
        return DataLoader(
            dataset,
            sampler=self.sampler(dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(collate_readable, self.images, encoder.image_size),
        )

    @property
    def embedder(self) -> EmbedsImages:
        """The module that the images are for."""
        return self.attached.lightning_module  # type: ignore[return-value]


class ImageFolderData(ImageData):
    """A folder of images: recursive, sorted by path, unreadable files left out (see `cae.data.list_folder`).

    `index` points into `paths`. If all images lie in sub-folders, the top one is an image's `label`, by the order of
    `classes`.

    Args:
        root: the folder.
        batch_size: images per batch.
        num_workers: processes that read and preprocess, see `ImageData`.
        paths: take these files below the folder instead of listing it.

    Raises:
        ImageError: no such folder, or no image in it.

    Examples:
        >>> data = ImageFolderData("photos")
        >>> data.classes, len(data.paths)
        (['blue', 'green', 'red'], 30)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        num_workers: int | None = None,
        paths: Sequence[Path] | None = None,
    ) -> None:
        self.root = Path(root)
        self.paths = list(paths) if paths is not None else list_images(root)
        parts = [path.relative_to(self.root).parts for path in self.paths]
        self.classes = sorted({top for top, *below in parts if below}) if all(len(each) > 1 for each in parts) else []
        number = {name: i for i, name in enumerate(self.classes)}
        images = Images(
            partial(read_path, self.paths),
            [shown_path(path, self.root) for path in self.paths],
            torch.tensor([number[each[0]] for each in parts]) if self.classes else None,
            files_identity(self.root, self.paths),
        )
        super().__init__(images, batch_size=batch_size, num_workers=num_workers)


def read_path(paths: Sequence[Path], index: int, side: int | None) -> Image.Image:
    """`Images.read` of files."""
    return read_image(paths[index], side)


class TorchvisionData(ImageData):
    """A data set of torchvision, or any that yields (PIL image, …): leave its `transform` unset.

    Classes come from where torchvision's data sets keep them, also through `Subset`, `random_split` and
    `ConcatDataset`; `classes` has their names if the data set has. An interrupted fit goes on where it stopped for data
    sets that have their images in memory as `data` or list their files as `samples`.

    Args:
        dataset: the data set.
        batch_size: images per batch.
        num_workers: processes that read and preprocess, see `ImageData`.

    Examples:
        >>> from torchvision.datasets import FakeData
        >>> data = TorchvisionData(FakeData(size=12, image_size=(3, 8, 8), num_classes=2))
        >>> len(data.images)
        12
    """

    def __init__(self, dataset: Any, *, batch_size: int = DEFAULT_BATCH_SIZE, num_workers: int | None = None) -> None:
        labels, self.classes = labels_of_dataset(dataset), class_names_of(dataset)
        files, data = _files_of_dataset(dataset), getattr(dataset, "data", None)
        paths, identity = [str(i) for i in range(len(dataset))], None
        if files is not None:
            root = Path(dataset.root)
            paths, identity = [shown_path(file, root) for file in files], files_identity(root, files)
        elif isinstance(data, np.ndarray | Tensor):
            identity = hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:32]
        images = Images(partial(read_item, dataset), paths, labels, identity)
        super().__init__(images, batch_size=batch_size, num_workers=num_workers)


def _files_of_dataset(dataset: Any) -> list[Path] | None:
    """The N files below `root` that a data set lists as torchvision's `ImageFolder` does; None for others."""
    root, samples = getattr(dataset, "root", None), getattr(dataset, "samples", None)
    if not isinstance(root, str | os.PathLike) or not isinstance(samples, list) or len(samples) != len(dataset):
        return None
    firsts = [sample[0] if isinstance(sample, tuple | list) and sample else None for sample in samples]
    files = [Path(first) for first in firsts if isinstance(first, str | os.PathLike)]
    return files if len(files) == len(samples) and all(file.is_relative_to(root) for file in files) else None


_LABELS = ("targets", "labels", "_labels", "y")
"""Where torchvision's data sets keep the N classes, by the commonest name first."""


def labels_of_dataset(dataset: Any) -> Tensor | None:
    """The classes (N,) int64 of a torchvision data set, without reading its images; None where it has none.

    Examples:
        >>> from torch.utils.data import Subset
        >>> from torchvision.datasets import ImageFolder
        >>> labels_of_dataset(Subset(ImageFolder("photos"), [0, 29]))
        tensor([0, 2])
    """
    if isinstance(dataset, Subset):
        labels = labels_of_dataset(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of_dataset(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]
    kept: Any = next((found for name in _LABELS if (found := getattr(dataset, name, None)) is not None), None)
    if kept is None:
        kept = [sample[1] for sample in getattr(dataset, "_samples", ())]
    found = np.asarray(kept)
    # Others keep captions, boxes, files or attributes there; -1 stands for what has no class.
    if found.shape != (len(dataset),) or found.dtype.kind not in "biu" or not len(found) or found.min() < 0:
        return None
    return as_labels(found)


def class_names_of(dataset: Any) -> list[str]:
    """The names of a torchvision data set's classes; empty where it has none, or parts of it differ.

    Examples:
        >>> from torch.utils.data import Subset
        >>> from torchvision.datasets import ImageFolder
        >>> class_names_of(Subset(ImageFolder("photos"), [0, 29]))
        ['blue', 'green', 'red']
    """
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        first, *others = map(class_names_of, dataset.datasets)
        return first if all(other == first for other in others) else []
    return [str(name) for name in getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()]


def read_item(dataset: Any, index: int, side: int | None) -> Image.Image:
    """`Images.read` of a data set that yields (PIL image, …).

    Raises:
        ImageError: a damaged file.
        TypeError: it yields something else.
    """
    try:
        item = dataset[index]
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image):
            return upright_rgb(image)  # which reads what the data set has only opened
    except (OSError, Image.DecompressionBombError) as error:  # what Pillow raises for a damaged or huge file
        raise ImageError(str(error)) from error
    raise TypeError(
        f"{type(dataset).__name__} yields {type(image).__name__}, not PIL images: leave its transform unset, the "
        "encoder has its own; or pass a DataLoader of preprocessed images to the trainer"
    )


class HuggingFaceData(ImageData):
    """A data set of the `datasets` library, map-style or streaming.

    WebDataset's archives are one as well: `datasets.load_dataset("webdataset", data_files="*.tar", split="train")`; so
    are pandas frames with a column of paths: `datasets.Dataset.from_pandas(frame)`, and `.cast_column("path",
    datasets.Image())` on it.

    A stream is read once, front to back, by one worker of each process; of several processes each reads all of it and
    decodes its share. An interrupted fit on a stream begins again.

    Args:
        dataset: `datasets.Dataset` or `IterableDataset`; of a `DatasetDict` choose a split.
        image: the column of images; by default the only one of that kind.
        label: the column of classes; by default `label`, or the only `ClassLabel`, if there is one. Whole numbers and,
            but for streams, strings will do, which are numbered in their order.
        batch_size: images per batch.
        num_workers: processes that read and preprocess, see `ImageData`.

    Raises:
        ValueError: no such column, none that can be chosen, or classes that are neither numbers nor strings.
        TypeError: no split of such a data set.

    Examples:
        >>> import datasets
        >>> rows = datasets.Dataset.from_dict({"image": ["photos/red/0.png", "photos/blue/0.png"]})
        >>> data = HuggingFaceData(rows.cast_column("image", datasets.Image()))
        >>> len(data.images)
        2
    """

    def __init__(
        self,
        dataset: Any,
        *,
        image: str | None = None,
        label: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        num_workers: int | None = None,
    ) -> None:
        import datasets

        if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
            raise TypeError(_which_dataset(dataset))
        features = dataset.features
        if features is None:
            raise ValueError("the stream does not tell its columns; give it `features`, or use .cast_column on it")
        self.image = _column(features, image, datasets.Image, "image")
        if self.image is None:
            raise ValueError(
                f"the data set has no column of pictures; its columns are {', '.join(features)}. If one holds paths, "
                "use .cast_column(NAME, datasets.Image())"
            )
        self.label = _column(features, label, datasets.ClassLabel, "label") or _plain_labels(features)
        # Decoded here, as files are: in small where that will do, and with a reason where it fails.
        self.rows = dataset.cast_column(self.image, datasets.Image(decode=False))
        self.streaming = isinstance(dataset, datasets.IterableDataset)
        if self.streaming:
            if self.label is not None and getattr(features[self.label], "dtype", "") in _STRINGS:
                raise ValueError(
                    f"the classes in {self.label!r} are strings, which a stream cannot number before its end; use "
                    ".cast_column on it with datasets.ClassLabel(names=[...])"
                )
            images = Images(_unread, [])
        else:
            images = Images(
                partial(read_row, self.rows, self.image),
                [str(i) for i in range(len(self.rows))],
                None if self.label is None else _classes(self.rows, self.label),
                f"hf:{dataset._fingerprint}",
            )
        super().__init__(images, batch_size=batch_size, num_workers=num_workers)

    def loader(self, start: int = 0) -> DataLoader[Any]:
        """The images from `start` on; of a stream all."""
        if not self.streaming:
            return super().loader(start)
        encoder, trainer = self.embedder.encoder, self.attached
        stream = _Stream(self, encoder.preprocess, encoder.image_size, trainer.global_rank, trainer.world_size)
        return DataLoader(
            stream,
            batch_size=self.batch_size,
            num_workers=min(self.num_workers, 1),
            collate_fn=_collate_stream,
        )


def _column(features: Any, name: str | None, kind: type, usual: str) -> str | None:
    """The column of that name, or the one of that kind."""
    if name is not None:
        if name not in features:
            raise ValueError(f"the data set has no column {name!r}; its columns are {', '.join(features)}")
        return name
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if usual in found:
        return usual
    if len(found) > 1:
        raise ValueError(f"the data set has several columns of {usual}s, {', '.join(found)}: say which with `{usual}`")
    return found[0] if found else None


_STRINGS = ("string", "large_string")


def _plain_labels(features: Any) -> str | None:
    """A column that is called as one of classes, and holds whole numbers or strings."""
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    usual = (name for name in ("label", "labels", "cls") if name in kinds)  # the last is WebDataset's
    return next((name for name in usual if kinds[name].startswith(("int", "uint")) or kinds[name] in _STRINGS), None)


def _classes(rows: Any, column: str) -> Tensor | None:
    """The classes (N,) int64 in a column; None where some have none, which a `ClassLabel` says by -1."""
    numbers = class_numbers(rows[column][:])
    named = bool(getattr(rows.features[column], "names", None))
    return None if named and bool((numbers < 0).any()) else numbers


def _which_dataset(given: Any) -> str:
    """What to hand over in place of something that is no split of a data set."""
    if isinstance(given, dict):
        first = next(iter(given), "train")
        return f"a {type(given).__name__} of {', '.join(map(str, given))}: choose a split, as dataset[{first!r}]"
    return (
        f"a {type(given).__name__} is no data set of Hugging Face: make one with datasets.Dataset.from_pandas(frame) "
        "or datasets.load_dataset, and .cast_column(NAME, datasets.Image()) where a column holds paths"
    )


def read_row(rows: Any, column: str, index: int, side: int | None) -> Image.Image:
    """`Images.read` of a Hugging Face data set whose `column` is not decoded."""
    return _decode(rows[index][column], side)


def _decode(value: Any, side: int | None) -> Image.Image:
    """An image as `datasets.Image(decode=False)` gives it: its bytes, or else where they are."""
    if value is None:
        raise ImageError("no picture")
    return read_image(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"], side)


def _unread(index: int, side: int | None) -> Image.Image:
    raise IndexError("a stream has no picture by number")


class _Stream(IterableDataset[Any]):
    """Samples (image, index, label) of a stream, of several processes this one's share."""

    def __init__(self, data: HuggingFaceData, preprocess: Any, side: int, rank: int, ranks: int) -> None:
        self.rows, self.image, self.label = data.rows, data.image, data.label
        self.preprocess, self.side, self.rank, self.ranks = preprocess, side, rank, ranks

    def __iter__(self) -> Iterator[tuple[Tensor, int, int | None]]:
        for index, row in enumerate(self.rows):
            if index % self.ranks != self.rank:
                continue
            try:
                image = self.preprocess(_decode(row[self.image], self.side))
            except ImageError:
                continue
            yield image, index, row[self.label] if self.label is not None else None


def _collate_stream(samples: Sequence[tuple[Tensor, int, int | None]]) -> dict[str, Any]:
    images, index, labels = zip(*samples, strict=True)
    batch = {"image": torch.stack(images), "index": torch.tensor(index), "path": [str(i) for i in index]}
    return batch if labels[0] is None else {**batch, "label": torch.tensor(labels)}
