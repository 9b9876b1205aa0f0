"""Image and text encoders behind one small protocol."""

from typing import TYPE_CHECKING, Any

from cae.encoders.base import Encoder, EncoderError, load_encoder

if TYPE_CHECKING:
    from cae.encoders.lite import LiteEncoder
    from cae.encoders.open_clip import OpenCLIPEncoder

__all__ = ["Encoder", "EncoderError", "LiteEncoder", "OpenCLIPEncoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: open_clip takes seconds, and lite needs an extra that may not be installed.
    if name == "OpenCLIPEncoder":
        from cae.encoders.open_clip import OpenCLIPEncoder

        return OpenCLIPEncoder
    if name == "LiteEncoder":
        from cae.encoders.lite import LiteEncoder

        return LiteEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
