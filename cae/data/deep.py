"""Images of more than 8 bits, as of microscopes, depth and thermal cameras, scanners and radiographs, in 8 bits.

Hardly any file says what such values mean: a sensor's 12 bits are stored in 16, heights begin anywhere, and -9999 may
mean that there is no value. So there is one rule, by the values alone. White is the highest value; black is zero, or
the lowest value where values lie below zero or fill less than half of what is between zero and the highest. Shades
between them are linear, and all channels of an image in colour share one range. Left out of the range are

- values that are no numbers or infinite; they are black;
- the lowest and the highest thousandth, as of hot pixels;
- a value at either end that is farther from all others than they are from each other, such as -9999 for no value.

An image that is all alike keeps its shade of the range from 0 to what its type holds, or to 1 for floats.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SAMPLE = 1 << 18
"""Number of values, evenly spaced over the image, from which the range is taken."""
_HOT = 1000
"""One value in this many is left out of the range at either end."""
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of a TIFF: bits of a sample; 0 where white is zero; 1 for numbers without a sign, 2 with one, 3 for floats."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image is of one channel of more than 8 bits, or of 8 bits with a sign."""
    return image.mode.startswith("I") or image.mode == "F" or _is_signed_byte(image)


def grey_in_8_bits(image: Image.Image) -> Image.Image:
    """An image for which `is_deep` holds, in mode L."""
    values = np.asarray(image)
    if values.dtype == np.int32 and _is_unsigned(image):
        values = values.view(np.uint32)
    elif _is_signed_byte(image):
        values = values.view(np.int8)
    shades = in_8_bits(values)
    return Image.fromarray(255 - shades if _begins_white(image) else shades)


def other_byte(rawmode: str) -> str | None:
    """Pillow's name of the layout of 16-bit colours whose upper byte is where `rawmode` has the lower one.

    Pillow keeps the upper byte alone of colours of 16 bits, and None is what it says of all others: reading an image
    once more with this in place of `rawmode` gives the lower.
    """
    colours, _, layout = rawmode.partition(";16")
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}.get(layout)
    return f"{colours};16{swapped}" if swapped and colours in ("RGB", "RGBA", "RGBX") else None


def colours_in_8_bits(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """An image in colours of 16 bits from its upper and lower bytes, in the mode of both, RGB or RGBA."""
    channels = [np.asarray(image)[..., :3].astype(np.uint16) for image in (upper, lower)]
    found = Image.fromarray(in_8_bits((channels[0] << 8) | channels[1]))
    if upper.mode == "RGBA":
        found.putalpha(upper.getchannel("A"))
    return found


def in_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of any number type and shape, by the rule of this module.

    >>> in_8_bits(np.array([[0, 1365], [2730, 4095]], dtype=np.uint16))
    array([[  0,  85],
           [170, 255]], dtype=uint8)
    """
    low, high = value_range(values)
    # A float of four bytes holds 24 bits exactly; of numbers with more, the range may be the last few.
    wide = values.dtype.itemsize > 2 and values.dtype.newbyteorder("=") != np.float32
    found: NDArray[np.floating[Any]] = values.astype(np.float64 if wide else np.float32)
    with np.errstate(over="ignore"):  # of what stands for no value, as the least float
        found -= low  # in place from here on: images may be large
        found *= 255 / (high - low)
    np.nan_to_num(found, copy=False, posinf=0.0, neginf=0.0)
    return np.clip(found, 0, 255, out=found).astype(np.uint8)


def value_range(values: NDArray[Any]) -> tuple[float, float]:
    """What is black and what is white in an image; the second is the larger."""
    flat = values.reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)].astype(np.float64)
    sample = np.sort(sample[np.isfinite(sample)])
    hot = len(sample) // _HOT
    sample = _without_outliers(sample[hot : len(sample) - hot])
    low, high = (float(sample[0]), float(sample[-1])) if len(sample) else (0.0, 0.0)
    if low < high:
        return (0.0 if 0 <= low <= high / 2 else low), high
    top = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else 1.0
    return min(low, 0.0), max(high, top)


def _without_outliers(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sorted values without those at either end that are farther from the rest than the rest is wide."""
    while len(sample):
        above, below = sample[sample > sample[0]], sample[sample < sample[-1]]
        # At least two values are left, or there is no rest to be far from.
        if len(above) and above[-1] > above[0] and above[0] - sample[0] > above[-1] - above[0]:
            sample = above
        elif len(below) and below[-1] > below[0] and sample[-1] - below[-1] > below[-1] - below[0]:
            sample = below
        else:
            break
    return sample


def _is_unsigned(image: Image.Image) -> bool:
    """Whether whole numbers of 32 bits are unsigned, as only TIFF says; Pillow reads them as signed."""
    tags = getattr(image, "tag_v2", {})
    return 32 in tags.get(_BITS, ()) and 1 in tags.get(_SAMPLE_FORMAT, (1,))


def _is_signed_byte(image: Image.Image) -> bool:
    """Whether greys of 8 bits have a sign; Pillow reads them as if they had none. TIFF alone says so."""
    return image.mode == "L" and 2 in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())


def _begins_white(image: Image.Image) -> bool:
    """Whether white is zero, which Pillow heeds in bytes alone. TIFF alone says so."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
