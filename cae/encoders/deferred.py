"""The encoder behind vectors that are given, loaded only when something is to be encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch

from cae.encoders.base import Encoder, EncoderError
from cae.encoders.load import load_encoder

NO_ENCODER = "none"
"""In place of an encoder's spec and fingerprint, in results of embeddings and texts that came as vectors."""


class _Deferred:
    """Knows the width of the vectors, and loads the encoder when asked for anything else."""

    def __init__(self, spec: str, weights: Path | None, dim: int, given: str) -> None:
        self.dim, self.given = dim, given
        self._spec, self._weights = spec, weights
        self._device: torch.device | str = "cpu"
        self._encoder: Encoder | None = None

    @property
    def loaded(self) -> bool:
        return self._encoder is not None

    def to(self, device: torch.device | str) -> Self:
        self._device = device
        if self._encoder is not None:
            self._encoder.to(device)
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for such names before __init__ has run
            raise AttributeError(name)
        if self._encoder is None:
            self._encoder = load_matching(
                self._spec,
                weights=self._weights,
                device=self._device,
                dim=self.dim,
                given=self.given,
                instead="give embeddings, or that encoder as `encoder` of CAE.from_pretrained",
            )
        return getattr(self._encoder, name)


def load_matching(
    spec: str, *, weights: Path | None, device: torch.device | str, dim: int, given: str, instead: str
) -> Encoder:
    """Load the encoder that made vectors which are given.

    Args:
        spec: spec for `load_encoder`, or `NO_ENCODER` where nothing says which encoder it was.
        weights: weights file for `load_encoder`.
        device: device to encode on.
        dim: width of the vectors.
        given: name of what holds the vectors, for messages.
        instead: what to do where nothing says which encoder it was, for messages.

    Raises:
        EncoderError: nothing says which encoder, it cannot be loaded, or it makes vectors of another width.
    """
    if spec == NO_ENCODER:
        raise EncoderError(f"{given} knows vectors alone, and nothing says by which encoder: {instead}")
    encoder = load_encoder(spec, weights=weights, device=device)
    if encoder.dim != dim:
        raise EncoderError(
            f"the encoder {spec} makes vectors of width {encoder.dim}, those of {given} have width {dim}: give the "
            "encoder that made them (encoder, --encoder)"
        )
    return encoder


def deferred(spec: str, *, weights: Path | None = None, dim: int, given: str) -> Encoder:
    """An encoder that is loaded at first use.

    Args:
        spec: spec for `load_encoder`, or `NO_ENCODER` where there is none to load.
        weights: weights file for `load_encoder`.
        dim: width of the vectors that are given.
        given: name of what holds the vectors, for messages.

    Raises:
        EncoderError: at first use, if it cannot be loaded or makes vectors of another width.
    """
    return cast(Encoder, _Deferred(spec, weights, dim, given))


def is_loaded(encoder: Encoder) -> bool:
    """Whether the encoder is loaded."""
    return not isinstance(encoder, _Deferred) or encoder.loaded


def maker(encoder: Encoder) -> str:
    """Name of what vectors of this width come from, for messages; loads nothing."""
    return encoder.given if isinstance(encoder, _Deferred) and not encoder.loaded else f"the encoder {encoder.spec}"
