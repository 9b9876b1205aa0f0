"""Pictures from disk, read so that nothing a folder holds can stop a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cae.encoders import Encoder

PAPER_WHITE = (255, 255, 255)


class ImageError(ValueError):
    """A file cannot be read as a picture; the message says why."""


class ImageBatch(TypedDict):
    """What `ImageFolderData` yields; unreadable files are left out, so a batch may be short or even empty."""

    image: Tensor  # (B, 3, H, W) float32
    index: Tensor  # (B,) int64, position in `ImageFolder.paths`


def list_images(root: str | os.PathLike[str]) -> list[Path]:
    """All files below `root` that look like pictures, in a fixed order.

    A file looks like a picture when its ending is one that Pillow reads. Hidden files and folders are passed over.

    Raises:
        ImageError: no such folder, or no picture in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ImageError(f"no such folder: {root}")
    Image.init()
    readable = {ending for ending, name in Image.EXTENSION.items() if name in Image.OPEN}
    paths = [path for path in _visible_files(root) if path.suffix.lower() in readable]
    if not paths:
        raise ImageError(
            f"no pictures in {root}: looked through all sub-folders for files that Pillow reads (.jpg, .png, …)"
        )
    return sorted(paths)


def _visible_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def read_image(path: str | os.PathLike[str], side: int | None = None) -> Image.Image:
    """A picture as people see it: upright, 8-bit RGB, transparency on white, the first frame of an animation.

    Args:
        path: any file that Pillow opens.
        side: the side of the square the picture will be shrunk to. A JPEG is then decoded at the smallest of its
            built-in scales that still has twice that side, which saves most of the work on a photograph.

    Raises:
        ImageError: not a picture, truncated, empty, or so large that it may be a decompression bomb.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ImageError(f"{image.width} x {image.height} pixels, over the limit of {Image.MAX_IMAGE_PIXELS}")
            if side is not None:
                image.draft("RGB", (2 * side, 2 * side))
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a picture in any format that Pillow reads") from error
    except Exception as error:  # Pillow's plugins raise whatever the bytes make them raise
        raise ImageError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips wide grey values at 255; scale them instead. 16-bit pictures come as I;16 or as I.
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode != "F" and values.max(initial=0) > 255 else max(float(values.max(initial=0)), 1.0)
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*PAPER_WHITE, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


class ImageFolder(Dataset[tuple[Tensor, int] | None]):
    """The pictures of a list of paths, preprocessed; None where a file cannot be read.

    Args:
        paths: the files.
        preprocess: RGB picture to (3, H, W) float32, an encoder's `preprocess`.
        side: an encoder's `image_size`, see `read_image`.
    """

    def __init__(self, paths: Sequence[Path], preprocess: Callable[[Image.Image], Tensor], side: int | None) -> None:
        self.paths = paths
        self.preprocess = preprocess
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            return self.preprocess(read_image(self.paths[index], self.side)), index
        except ImageError:
            return None


def collate_readable(side: int, samples: Sequence[tuple[Tensor, int] | None]) -> ImageBatch:
    """Stack what could be read."""
    readable = [sample for sample in samples if sample is not None]
    images = torch.stack([image for image, _ in readable]) if readable else torch.empty(0, 3, side, side)
    return {"image": images, "index": torch.tensor([index for _, index in readable], dtype=torch.int64)}


class ImageFolderData(pl.LightningDataModule):
    """A folder of pictures for `trainer.predict`: recursive, in a fixed order, unreadable files left out.

    Batches are `ImageBatch` dicts; `index` points into `paths`.

    Args:
        root: the folder.
        batch_size: pictures per batch.
        num_workers: processes that read and preprocess, so that decoding overlaps with encoding.
        paths: take these files instead of listing `root`.

    Raises:
        ImageError: no such folder, or no picture in it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        paths: Sequence[Path] | None = None,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.paths = list(paths) if paths is not None else list_images(root)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pictures, preprocessed as the module's encoder wants them."""
        encoder: Encoder = self.trainer.lightning_module.encoder  # type: ignore[union-attr, assignment]
        return DataLoader(
            ImageFolder(self.paths, encoder.preprocess, encoder.image_size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(collate_readable, encoder.image_size),
            persistent_workers=False,
        )
