"""TIFFs that Pillow does not read: floats of 16 and 64 bits, deep colours, and more bands than a screen has."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from cae.data import deep

MAGICS = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b")
"""First bytes of a TIFF and of a BigTIFF."""

_WHITE_IS_ZERO, _RGB = 0, 2
"""Of what the values are, as a TIFF tells; between the two, 1: greys from black on."""


logging.getLogger("tifffile").addHandler(logging.NullHandler())  # why a file is refused, the error says


class TiffImage(ImageFile.ImageFile):
    """The first page of a TIFF, as Pillow has images: the first of one or two bands, in L, or of more the first three.

    Of a page that is a volume it is the first slice. tifffile decodes it when it is loaded, and `cae.data.deep` brings
    what is no byte to 8 bits.

    Raises:
        ValueError: not a TIFF, one that tifffile does not decode, or one whose values are neither greys nor RGB.
    """

    format = "TIFF"

    def _open(self) -> None:
        import tifffile  # 0.1 s, for what few folders hold

        assert self.fp is not None  # opened from a file
        try:
            page: Any = tifffile.TiffFile(self.fp).pages.first
            is_shades = page.dtype.kind in "biuf" and page.photometric <= _RGB
        except Exception as error:  # tifffile raises whatever the bytes make it raise
            raise ValueError("a damaged TIFF, or of a type that tifffile does not know") from error
        if not is_shades:
            raise ValueError(f"a TIFF of {page.dtype} in {page.photometric!r}; greys and RGB are read")
        self._page: Any = page
        self._size = page.imagewidth, page.imagelength
        self._mode = "RGB" if page.samplesperpixel >= 3 else "L"
        self.samples_per_pixel = page.imagedepth * page.samplesperpixel  # a volume is decoded as a whole
        self.bytes_per_pixel = self.samples_per_pixel * page.dtype.itemsize + 8 * len(self._mode)  # and as float64
        self.tile = []
        held = Image.Exif()
        held[ExifTags.Base.Orientation] = page.tags.valueof(ExifTags.Base.Orientation, default=1)
        self.info["exif"] = held.tobytes()

    def load(self) -> Any:
        """Decode, once."""
        if self._page is not None:
            self.load_prepare()
            self.frombytes(_in_8_bits(self._page).tobytes())
            self._page = None
        return super().load()


def _in_8_bits(page: Any) -> NDArray[np.uint8]:
    """What a screen shows of a page: (H, W), or (H, W, 3)."""
    values = _first_slice_and_bands(page.asarray(), page.axes)
    shades = values if page.dtype == np.uint8 and page.bitspersample == 8 else deep.in_8_bits(values)
    return 255 - shades if page.photometric == _WHITE_IS_ZERO else shades


def _first_slice_and_bands(values: NDArray[Any], axes: str) -> NDArray[Any]:
    if "S" in axes:  # samples, which lie beside each other or one behind the other
        values = np.moveaxis(values, axes.index("S"), -1)
        values = values[..., :3] if values.shape[-1] >= 3 else values[..., 0]
    return values[0] if "Z" in axes else values
