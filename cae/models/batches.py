"""What a batch holds, however the user's DataModule packs it: images or embeddings, and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from cae.encoders import Encoder

IMAGE_KEYS = ("image", "images", "pixel_values", "embedding", "embeddings")


def images_of(batch: Any) -> Tensor:
    """The images or embeddings of a batch: the batch itself, the first of a tuple, or under one of `IMAGE_KEYS`.

    Raises:
        ValueError: there are none.
    """
    if isinstance(batch, Mapping):
        for key in IMAGE_KEYS:
            if key in batch:
                return images_of(batch[key])
        raise ValueError(f"a dict batch needs one of the keys {', '.join(IMAGE_KEYS)}; this one has {', '.join(batch)}")
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and batch:
        return images_of(batch[0])
    raise ValueError(f"expected a batch of images or embeddings as tensor, tuple or dict, got {type(batch).__name__}")


def labels_of(batch: Any) -> Tensor | None:
    """The classes (B,) int64 of a batch: `label` or `labels` of a dict, or a tuple's second part; None without any."""
    if isinstance(batch, Mapping):
        found = batch.get("label", batch.get("labels"))
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    # Torch cannot index or join every narrow dtype.
    return found.long() if isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point() else None


def index_of(batch: Any, n: int) -> Tensor | None:
    """The ids (B,) int64 of a batch's samples: `index` of a dict, on the CPU; None without any.

    Args:
        batch: the batch.
        n: B, the number of images in it.

    Raises:
        ValueError: they are not B, or no tensor of whole numbers, as names of files are.
    """
    if not isinstance(batch, Mapping) or "index" not in batch:
        return None
    index = batch["index"]
    if not isinstance(index, Tensor) or index.is_floating_point():
        got = f"a {index.dtype} tensor" if isinstance(index, Tensor) else f"a {type(index).__name__}"
        raise ValueError(
            f"`index` of the batch must be a tensor of whole numbers that tell the samples apart, got {got}: number "
            "the samples of the data set, or leave it out"
        )
    if index.shape != (n,):
        raise ValueError(f"`index` of the batch has shape {tuple(index.shape)}, but there are {n} images in it")
    return index.long().cpu()


def refuse_repeats(index: Tensor) -> None:
    """Refuse ids (N,) of which some are the same, where no sampler of several processes repeats samples.

    Raises:
        ValueError: says how many.
    """
    n_repeats = len(index) - len(index.unique())
    if n_repeats:
        raise ValueError(
            f"{n_repeats} of {len(index)} images have the `index` of another one; leave it out of the batches, or "
            "number the images of the data set"
        )


def unprepared(images: Tensor, encoder: Encoder) -> str | None:
    """Why a batch cannot come from the encoder's `preprocess`; None where it can.

    Args:
        images: (B, 3, H, W) floats.
        encoder: says how a black and a white image look once they are preprocessed.

    Examples:
        >>> import torch
        >>> from cae.encoders import LiteEncoder
        >>> unprepared(torch.rand(8, 3, 32, 32), LiteEncoder())
        'are 32 × 32 pixels, in place of 260 × 260'
    """
    side = encoder.image_size
    if images.shape[-2:] != (side, side):
        return f"are {images.shape[-2]} × {images.shape[-1]} pixels, in place of {side} × {side}"
    black, white = (encoder.preprocess(Image.new("RGB", (side, side), colour)) for colour in ("black", "white"))
    low, high = float(images.min()), float(images.max())
    if high > float(white.max()) + 0.5:
        return f"hold values up to {high:.3g}, where white is {float(white.max()):.3g}"
    # Nearly every photograph has something dark.
    if low >= 0 > float(black.min()) and len(images) > 1:
        return f"hold no value below 0, where black is {float(black.min()):.3g}"
    return None
