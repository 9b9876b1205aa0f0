"""Images of any source as a torch data set that leaves out what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cae.data.images import READING, ImageError
from cae.utils.checksums import json_hash


@dataclass(frozen=True)
class Images:
    """N images of any source in a fixed order.

    Attributes:
        read: (index, side) to an RGB image, see `read_image`; picklable, so that workers can read.
        paths: N names for people, a path below the root where there is one.
        labels: (N,) int64 classes, or None.
        identity: a text that differs where the images do; None where that is not known without reading them all.

    Examples:
        >>> images = Images(lambda index, side: Image.new("RGB", (8, 8)), ["first", "second"])
        >>> len(images), images.read(0, None).size
        (2, (8, 8))
    """

    read: Callable[[int, int | None], Image.Image]
    paths: Sequence[str]
    labels: Tensor | None = None
    identity: str | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.paths)


class ImageBatch(TypedDict):
    """Some images as the data modules yield them; unreadable ones are left out, so a batch may be short or empty."""

    image: Tensor  # (B, 3, H, W) float32
    index: Tensor  # (B,) int64, position in the data
    path: list[str]  # B
    label: NotRequired[Tensor]  # (B,) int64, where there are classes


def files_identity(root: Path, paths: Sequence[Path]) -> str:
    """A hash that differs when a file is added, removed, renamed or written to.

    Size and time stand for the content: hashing a million images would take as long as embedding them.

    Examples:
        >>> paths = [Path("photos/red/0.png")]
        >>> files_identity(Path("photos"), paths) == files_identity(Path("photos"), paths)
        True
    """
    stats = [(os.fspath(path.relative_to(root)), *size_and_time(path)) for path in paths]
    return json_hash([READING, stats])[:32]


def size_and_time(path: Path) -> tuple[int, int]:
    """Size of a file in bytes, and time of its last change in nanoseconds; 0 and 0 without a file."""
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere, or gone since it was listed
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


class ImageDataset(Dataset[tuple[Tensor, int] | None]):
    """Images from `start` on, preprocessed, with their index; None where one cannot be read.

    Args:
        images: the images to read.
        preprocess: RGB image to (3, H, W) float32, an encoder's `preprocess`.
        side: an encoder's `image_size`, see `read_image`.
        start: the first one.

    Examples:
        >>> from cae.data import read_image
        >>> from torchvision.transforms.functional import to_tensor
        >>> images = Images(lambda index, side: read_image("photos/red/0.png", side), ["photos/red/0.png"])
        >>> image, index = ImageDataset(images, to_tensor, side=None)[0]
        >>> image.shape, index
        (torch.Size([3, 20, 24]), 0)
    """

    def __init__(
        self, images: Images, preprocess: Callable[[Image.Image], Tensor], side: int | None, start: int = 0
    ) -> None:
        self.images = images
        self.preprocess = preprocess
        self.side = side
        self.start = start

    def __len__(self) -> int:
        return len(self.images) - self.start

    def __getitem__(self, position: int) -> tuple[Tensor, int] | None:
        index = self.start + position
        try:
            return self.preprocess(self.images.read(index, self.side)), index
        except ImageError:
            return None


def collate_readable(images: Images, side: int, samples: Sequence[tuple[Tensor, int] | None]) -> ImageBatch:
    """Stack what could be read.

    Examples:
        >>> images = Images(lambda index, side: Image.new("RGB", (4, 4)), ["first", "damaged", "third"])
        >>> batch = collate_readable(images, 4, [(torch.zeros(3, 4, 4), 0), None, (torch.zeros(3, 4, 4), 2)])
        >>> batch["image"].shape, batch["path"]
        (torch.Size([2, 3, 4, 4]), ['first', 'third'])
    """
    readable = [sample for sample in samples if sample is not None]
    index = torch.tensor([index for _, index in readable], dtype=torch.int64)
    batch: ImageBatch = {
        "image": torch.stack([image for image, _ in readable]) if readable else torch.empty(0, 3, side, side),
        "index": index,
        "path": [images.paths[i] for i in index.tolist()],
    }
    if images.labels is not None:
        batch["label"] = images.labels[index]
    return batch
