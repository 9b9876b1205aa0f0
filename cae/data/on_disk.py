"""Writes images and embeddings that are only in memory, or behind a data set, to files: results are made from files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cae.data.dataset import Images
from cae.data.images import ImageError
from cae.utils.files import drafting, replacing
from cae.utils.names import distinct_names
from cae.utils.progress import Reporter, silent

FOLDER = "source"
_MARK = ".written-by-cae"


def on_disk(source: Any, out: Path, reporter: Reporter = silent) -> Path:
    """The path of a source; what has none is written into a folder first.

    Args:
        source: a path; (N, D) embeddings as a tensor or array; a Hugging Face data set of images; a torchvision data
            set or another that yields (PIL image, …); or a data module of `cae.data`.
        out: an existing folder. Images go to `out/source`, by class if there are classes, embeddings to
            `out/source.npy`. Those of an earlier call are replaced.
        reporter: makes the progress callback.

    Returns:
        The folder of images or file of embeddings.

    Raises:
        TypeError: something else; the message says what is taken.
        ImageError: `out/source` is in the way, or no image can be read.

    Examples:
        >>> from torchvision.datasets import FakeData
        >>> folder = on_disk(FakeData(size=4, image_size=(3, 8, 8), num_classes=2), Path())
        >>> sum(path.suffix == ".png" for path in folder.rglob("*"))
        4
    """
    if isinstance(source, str | os.PathLike):
        return Path(source)
    if isinstance(source, Tensor | np.ndarray):
        _, file = places_on_disk(out)
        with replacing(file) as draft:  # the array may be mapped from the file that is there
            np.save(draft, source.detach().float().cpu().numpy() if isinstance(source, Tensor) else source)
        return file
    images, classes = _images_of(source)
    return _write(images, classes, places_on_disk(out)[0], reporter)


def places_on_disk(out: Path) -> tuple[Path, Path]:
    """Where `on_disk` writes what has no path: the folder of images, and the file of embeddings."""
    return out / FOLDER, out / f"{FOLDER}.npy"


def _images_of(source: Any) -> tuple[Images, Sequence[str] | None]:
    """The images behind a data set, and the names of its classes."""
    from cae.data.modules import HuggingFaceData, ImageData, TorchvisionData  # they bring Lightning

    if isinstance(source, ImageData):
        return source.images, getattr(source, "classes", None) or None
    if hasattr(source, "features"):
        data = HuggingFaceData(source)
        if data.streaming:
            raise TypeError("a stream cannot be gone over twice: load the data set without streaming")
        return data.images, getattr(source.features.get(data.label or ""), "names", None)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        torchvision = TorchvisionData(source)
        return torchvision.images, torchvision.classes or None
    raise TypeError(
        f"expected a folder of images, a file or (N, D) array of embeddings, or a data set of images, got "
        f"{type(source).__name__}"
    )


def _write(images: Images, classes: Sequence[str] | None, folder: Path, reporter: Reporter) -> Path:
    if folder.exists() and not (folder / _MARK).is_file():
        raise ImageError(f"{folder} is in the way of the images to be written; move it, or choose another out")
    with drafting(folder.parent) as draft:
        _write_images(images, classes, draft / FOLDER, reporter)
        if folder.exists():  # only now: the images may be read from it, and belong to a result until the next is made
            folder.rename(draft / "before")
        (draft / FOLDER).rename(folder)
    return folder


def _write_images(images: Images, classes: Sequence[str] | None, folder: Path, reporter: Reporter) -> None:
    folder.mkdir()
    (folder / _MARK).touch()
    report, width, written = reporter("images"), len(str(len(images))), 0
    names = distinct_names(map(str, classes or ()))
    for i in range(len(images)):
        place = folder
        if images.labels is not None:
            label = int(images.labels[i])
            place = folder / (names[label] if names else str(label))
            place.mkdir(exist_ok=True)
        try:
            images.read(i, None).save(place / f"{i:0{width}}.png")
            written += 1
        except ImageError:  # one damaged image costs that image alone
            continue
        finally:
            report(i + 1, len(images))
    if not written:
        raise ImageError("none of the images of the data set can be read")
