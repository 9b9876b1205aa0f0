"""The offline encoder; importing this package needs the `lite` extra."""

from cae.encoders.lite.encoder import LiteEncoder

__all__ = ["LiteEncoder"]
