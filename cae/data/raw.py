"""Cameras' raw files, by the JPEG preview that cameras put into them: how the camera itself shows the photograph."""

from __future__ import annotations

import io
import mmap
import struct
from typing import IO

from PIL import Image

ENDINGS = frozenset({
    ".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})  # fmt: skip

_START = b"\xff\xd8\xff"
_MOST_TRIES = 64
"""Places where a JPEG may begin that are looked at: a file holds a few previews, and one by chance in 16 MB."""
_HEADER = 1 << 17
"""Bytes that the headers of a preview, and the first directory of a raw file, lie in."""
_ORIENTATION = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I"}
"""Whole numbers by the type of a tag."""


def preview(file: IO[bytes]) -> io.BytesIO | None:
    """The largest JPEG inside a raw file, None where there is none.

    Args:
        file: opened by name.
    """
    file.seek(0, io.SEEK_END)
    if not file.tell():
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        most, best = 0, -1
        at = content.find(_START, 1)  # what begins with a JPEG is one, under a wrong name
        for _ in range(_MOST_TRIES):
            if at < 0:
                break
            pixels = _pixels(content[at : at + _HEADER])
            if pixels > most:
                most, best = pixels, at
            at = content.find(_START, at + 1)
        # What follows the preview does not disturb the decoder.
        return io.BytesIO(content[best:]) if most else None


def _pixels(header: bytes) -> int:
    """The size of the JPEG that begins so; 0 for none, or for one of 12 or more bits, which is what the sensor saw."""
    try:
        with Image.open(io.BytesIO(header), formats=("JPEG",)) as image:
            return image.width * image.height
    except Exception:  # whatever the plugin makes of bytes that are no image
        return 0


def orientation(file: IO[bytes]) -> int:
    """The orientation by the first directory of a raw file; 1, upright, where there is none."""
    file.seek(0)
    return tiff_orientation(file.read(_HEADER)) or 1


def tiff_orientation(block: bytes) -> int | None:
    """The tag Orientation of a TIFF's first directory, as EXIF holds one; None where it does not say.

    Read by itself: Pillow reads all tags, and gives up those behind one that is damaged.

    Examples:
        >>> tiff_orientation(bytes.fromhex("49492a0008000000" "0100" "120103000100000006000000"))
        6
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION and kind in _NUMBERS:
                return int(struct.unpack_from(f"{order}{_NUMBERS[kind]}", block, entry + 8)[0])
    except struct.error:  # it ends before it says
        return None
    return None
