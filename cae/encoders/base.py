"""What every encoder promises: images and texts as unit vectors in one space (the inputs of Eq. 1-8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from PIL import Image
from torch import Tensor


class EncoderError(RuntimeError):
    """An encoder is not available; the message says why and what to do instead.

    Attributes:
        problem: the message without the remedy, which is another one for embeddings that are given.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}. {remedy}" if remedy else problem)
        self.problem = problem


class Encoder(Protocol):
    """Encodes images and texts as unit vectors of one space.

    Encoders are plain objects rather than `nn.Module`s, so that a LightningModule can hold one without its weights
    ending up in checkpoints.

    Attributes:
        spec: What `load_encoder` takes to load this encoder again.
        dim: Width D of the vectors.
        fingerprint: Short hash that differs between encoders whose vectors differ (model, weights, preprocessing) and
            is the same on every machine.
        prompt: The encoder's own prompt for nouns, with `{}` for the noun; the caller that encodes nouns applies it.
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
