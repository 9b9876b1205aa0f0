"""Image and text encoders behind one small protocol.

Names are loaded at first use: open_clip takes seconds, and `lite` needs an extra that may not be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cae.utils.lazy import lazy

if TYPE_CHECKING:
    from cae.encoders.base import Encoder, EncoderError
    from cae.encoders.lite import LiteEncoder
    from cae.encoders.load import load_encoder
    from cae.encoders.open_clip import OpenCLIPEncoder

_HOMES = {
    "Encoder": "cae.encoders.base",
    "EncoderError": "cae.encoders.base",
    "LiteEncoder": "cae.encoders.lite",
    "OpenCLIPEncoder": "cae.encoders.open_clip",
    "load_encoder": "cae.encoders.load",
}

__all__ = ["Encoder", "EncoderError", "LiteEncoder", "OpenCLIPEncoder", "load_encoder"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
