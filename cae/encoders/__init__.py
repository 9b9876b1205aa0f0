"""Image and text encoders behind one small protocol."""

from cae.encoders.base import Encoder, EncoderError, load_encoder

__all__ = ["Encoder", "EncoderError", "load_encoder"]
