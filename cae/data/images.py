"""Reading images, so that no file of a folder can stop a run."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePath
from typing import IO

import pi_heif
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cae.data import deep, raw, tiff

PAPER_WHITE = (255, 255, 255)

PROGRAMS = ("EPS", "WMF")
"""Formats that are programs, which Pillow hands to Ghostscript and to Windows to be run: they are refused."""

MOST_OBLONG = 50
"""Sides of an image for an encoder, at most. Encoders bring the shorter side to theirs and take the middle: of 20,000
by 10 pixels they would make 500,000 by 250 first, and of a longer one run out of memory."""

LARGE = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Pixels, from which on images are made smaller before they are converted: Pillow's own limit."""

MAX_PIXELS = "CAE_MAX_PIXELS"
"""Environment variable: the most pixels of an image, for every process that reads."""

_COMMON = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "HEIF", "AVIF", "JPEG2000", "PSD")
"""Formats that are looked for first, and under any ending: their first bytes are long enough to know them by."""
_MOST_PER_PIXEL = 4 + 8 + 6
"""Bytes that a pixel takes at most while an image is read: stored, converted, and in the decoder."""
_SAMPLES_OF_A_PIXEL = 4
"""Of a pixel of many bands, or of a volume, so many count as one pixel: those of red, green, blue and transparency."""
_BY_ROWS = ("PNG", "BMP", "PPM")
"""Formats that are decoded with no more memory than the image itself takes."""
_REDUCIBLE = ("L", "RGB", "RGBA", "CMYK")
"""Modes that `Image.reduce` makes smaller."""
_START = 16
"""Bytes by which Pillow tells formats apart."""
READING = 4
"""Raise this when files are read differently than before: cached embeddings are then made again."""
_ORIENTATION = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each orientation of EXIF; 1 is upright."""
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where Pillow keeps the blocks that may say an orientation."""


class ImageError(ValueError):
    """A file cannot be read as an image; the message says why."""


def has_image_ending(path: PurePath) -> bool:
    """Whether a file has the ending of an image, or of a camera's raw file."""
    ending = path.suffix.lower()
    return ending in raw.ENDINGS or (bool(_formats()) and Image.EXTENSION.get(ending) in Image.OPEN)


def is_image_by_content(path: Path) -> bool:
    """Whether a file begins as images of the common formats do, whatever it is called."""
    _formats()
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            return any(_begins_as(name, start) for name in _COMMON) or (
                start.startswith(b"BM") and image_size(path) > (0, 0)  # two letters alone begin many a text
            )
    except (OSError, ImageError):
        return False


def _begins_as(name: str, start: bytes) -> bool:
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    # A text in place of the answer means: it is one, but Pillow was built without support for it.
    return accept is not None and bool(accept(start))


def _has_magic(name: str) -> bool:
    """Whether the first bytes tell a format; TGA and a few others have to be read to know."""
    return Image.OPEN[name][1] is not None


def read_image(path: str | os.PathLike[str] | IO[bytes], side: int | None = None) -> Image.Image:
    """An image as people see it: upright, 8-bit RGB, transparency on white, the first frame of an animation.

    Of a camera's raw file it is the largest preview inside. Deeper greys and colours are brought to 8 bits by
    `cae.data.deep`.

    Args:
        path: any file that Pillow or libheif opens, by name or opened.
        side: the side of the square the image will be shrunk to. A JPEG is then decoded at the smallest of its
            built-in scales that still has twice that side, which saves most of the work on a photograph; and of an
            image more oblong than `MOST_OBLONG` the ends are left out.

    Raises:
        ImageError: not an image, truncated, empty, or so large that it may be a decompression bomb.

    Examples:
        >>> read_image("photos/red/0.png").size
        (24, 20)
    """
    try:
        if not isinstance(path, str | os.PathLike):
            return _read(path, side)
        path = path if isinstance(path, Path) else Path(path)
        with path.open("rb") as file:
            inside = _preview(path, file)
            if inside is None:
                return _read(file, side)
            return _read(inside, side, orientation=raw.orientation(file))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever the bytes make them raise
        reason = error.strerror if isinstance(error, OSError) else None  # without the path, which who asks has
        if isinstance(error, FileNotFoundError) and isinstance(path, Path) and path.is_symlink():
            reason = "a link that leads nowhere"
        raise ImageError(reason or str(error) or type(error).__name__) from error


def _read(file: IO[bytes], side: int | None, *, orientation: int = 1) -> Image.Image:
    """`read_image` of an open file; `orientation` holds where the file says none."""
    with _open(file) as image:
        full = image.width * image.height
        if side is not None:
            image.draft("RGB", (2 * side, 2 * side))
        _check_size(image, full, side)
        other = deep.other_byte(_layout(image))
        # Before the orientation: Pillow turns a TIFF as it loads it, and a PNG may say it at its end.
        image.load()
        held = _orientation(image)
        orientation = held if held in _TURNED else orientation
        if other is not None:
            image = _with_lower_bytes(image, file, other)
        rgb = to_rgb(image if side is None else _less_oblong(_smaller(image, side)))
    if side is not None:
        rgb = _smaller(rgb, side)
    return _upright(rgb, orientation)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned, and without what says that it is to be turned: it may be read once more."""
    if orientation not in _TURNED:
        return image
    turned = image.transpose(_TURNED[orientation])
    for block in _METADATA:
        turned.info.pop(block, None)
    return turned


def _preview(path: Path, file: IO[bytes]) -> IO[bytes] | None:
    """The image inside a camera's raw file; None for other files, and without one."""
    return raw.preview(file) if path.suffix.lower() in raw.ENDINGS else None


def _open(file: IO[bytes]) -> Image.Image:
    """`Image.open` without its limit of pixels, which a large photograph exceeds as a decompression bomb does.

    Args:
        file: an open file, read from its beginning. Pillow is not told its name: it would map an uncompressed TIFF into
            memory with its sides exchanged where the camera was held upright.

    Raises:
        ImageError: none of the formats.
    """
    file.seek(0)
    start = file.read(_START)
    if not start:
        raise ImageError("an empty file")
    for format_name in _formats():
        if _begins_as(format_name, start) or not _has_magic(format_name):
            file.seek(0)
            try:
                return _without_decoder(Image.OPEN[format_name][0](file, ""))
            except (SyntaxError, IndexError, TypeError, struct.error):  # what Pillow takes for: another format
                continue
    if start.startswith(tiff.MAGICS):
        file.seek(0)
        return tiff.TiffImage(file, "")
    raise ImageError(f"not a picture in any format that Pillow reads, without {' and '.join(PROGRAMS)}")


def _without_decoder(image: Image.Image) -> Image.Image:
    """A PPM of 16 bits as its raw bytes, of which `deep` takes both; Pillow's decoder for it keeps the upper one."""
    if image.format == "PPM" and _layout(image) == "RGB":
        (tile,) = image.tile  # type: ignore[attr-defined]
        if tile.codec_name == "ppm" and tile.args[1] == 65535:
            image.tile = [tile._replace(codec_name="raw", args=("RGB;16B", 0, 1))]  # type: ignore[attr-defined]
    return image


def _layout(image: Image.Image) -> str:
    """How the bytes of an image lie in its file, in Pillow's words."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return arguments if isinstance(arguments, str) else str((arguments or ("",))[0])


def _with_lower_bytes(image: Image.Image, file: IO[bytes], layout: str) -> Image.Image:
    """An image in colours of 16 bits, of which Pillow has read the upper bytes, in 8 bits of its own range."""
    with _open(file) as again:
        tiles = again.tile  # type: ignore[attr-defined]
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(args=layout if isinstance(tile.args, str) else (layout, *tile.args[1:])) for tile in tiles
        ]
        again.load()
        return deep.colours_in_8_bits(image, again)


def _check_size(image: Image.Image, full: int, side: int | None) -> None:
    """Refuse an image that may be a decompression bomb.

    Args:
        image: not loaded yet; a JPEG perhaps to be decoded smaller.
        full: pixels of the whole.
        side: see `read_image`.

    Raises:
        ImageError: it has more pixels than were allowed, or, where nobody has said how many, takes too much memory.
    """
    limit = max_pixels()
    if limit is not None:
        samples = getattr(image, "samples_per_pixel", 1)
        counted = full * -(-samples // _SAMPLES_OF_A_PIXEL)
        if counted > limit:
            deeper = (
                f" of {samples:,} samples each, bands or slices, which count as {counted:,}" if counted > full else ""
            )
            raise ImageError(
                f"over the limit of {limit:,} pixels: it has {full:,}{deeper}; allow more with --max-pixels"
            )
    # Nearly all are so small that no closer look is needed.
    elif (
        full * getattr(image, "bytes_per_pixel", _MOST_PER_PIXEL)
        > most_memory()
        < (needed := _bytes_needed(image, full, side))
    ):
        raise ImageError(
            f"over the limit of {most_memory() / 2**30:.1f} GB of memory: its {full:,} pixels take "
            f"{needed / 2**30:.1f} GB; allow them with --max-pixels"
        )


def _bytes_needed(image: Image.Image, full: int, side: int | None) -> int:
    """About as much memory as decoding takes."""
    pixels = image.width * image.height
    if isinstance(image, tiff.TiffImage):
        return pixels * image.bytes_per_pixel
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    # In other modes, or at full size, it is converted as a whole.
    converted = 0 if side is not None and image.mode in _REDUCIBLE else 8
    if isinstance(image, JpegImageFile):
        decoder = 0 if _in_one_scan(image) else 6 * full  # coefficients of 2 bytes for three channels
    else:
        decoder = 0 if image.format in _BY_ROWS else stored * pixels
    return pixels * (stored + converted) + decoder


def _in_one_scan(image: JpegImageFile) -> bool:
    """Whether a JPEG is decoded row by row; else all its coefficients are held, whatever size it is decoded at."""
    if "progressive" in image.info:
        return False
    # Pillow has stopped behind the head of the first scan: its mark, length and number of channels, two bytes for each
    # channel, and three.
    head = struct.pack(">HHB", 0xFFDA, 6 + 2 * image.layers, image.layers)
    assert image.fp is not None  # not loaded yet
    at = image.fp.tell()
    image.fp.seek(max(0, at - len(head) - 2 * image.layers - 3))
    found = image.fp.read(len(head))
    image.fp.seek(at)
    return found == head


def max_pixels() -> int | None:
    """The most pixels of an image: `CAE_MAX_PIXELS`, or a `PIL.Image.MAX_IMAGE_PIXELS` below Pillow's own; or None.

    Raises:
        ImageError: `CAE_MAX_PIXELS` is no number.
    """
    told = os.environ.get(MAX_PIXELS)
    if told:
        if not told.isdecimal():
            raise ImageError(f"{MAX_PIXELS} must be a whole number of pixels, got {told!r}")
        return int(told)
    return Image.MAX_IMAGE_PIXELS if (Image.MAX_IMAGE_PIXELS or LARGE) < LARGE else None


@cache
def most_memory() -> int:
    """Bytes that one image may take: a quarter of the machine's or the container's memory, and at most 2 GiB.

    No photograph needs as much: a larger image counts as a decompression bomb unless `max_pixels` allows it.
    """
    most = 2**31
    with suppress(AttributeError, ValueError, OSError):  # not known on every system
        most = min(most, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    with suppress(ValueError, OSError):  # no container, or one without a limit
        most = min(most, int(Path("/sys/fs/cgroup/memory.max").read_text()) // 4)
    return most


def _smaller(image: Image.Image, side: int) -> Image.Image:
    """An image of more pixels than `LARGE`, block by block made one pixel, to no less than twice the side."""
    factor = min(image.size) // (2 * side)
    if image.width * image.height <= LARGE or factor < 2 or image.mode not in _REDUCIBLE:
        return image
    return image.reduce(factor)


def _orientation(image: Image.Image) -> int:
    """The orientation by EXIF or XMP; 1, upright, where there is none that can be read."""
    block = image.info.get("exif")
    held = raw.tiff_orientation(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else None
    if held is not None:
        return held
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a tag may hold anything, and is no reason to lose the image
        return 1


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels as the file's header has them, before any turning.

    Raises:
        ImageError: not an image.
    """
    try:
        path = Path(path)
        with path.open("rb") as file, _open(_preview(path, file) or file) as image:
            return image.size
    except ImageError:
        raise
    except Exception as error:  # as in `read_image`
        raise ImageError(str(error) or type(error).__name__) from error


@cache
def _formats() -> tuple[str, ...]:
    """What Pillow may take a file for: the common ones first, last those without a magic; the ending says nothing."""
    Image.init()
    pi_heif.register_heif_opener()
    return tuple(sorted(set(Image.OPEN) - set(PROGRAMS), key=lambda n: (n not in _COMMON, not _has_magic(n), n)))


def _less_oblong(image: Image.Image) -> Image.Image:
    """The middle of an image that is far longer than wide."""
    most = MOST_OBLONG * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(length, most) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit RGB, with transparency on white and deep values by `cae.data.deep`.

    Raises:
        OSError: it is read only now, and truncated.

    Examples:
        >>> to_rgb(Image.new("RGBA", (1, 1))).getpixel((0, 0))
        (255, 255, 255)
    """
    if deep.is_deep(image):
        image = deep.grey_in_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*PAPER_WHITE, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that somebody else has opened, as `read_image` gives it: turned as its EXIF says, and by `to_rgb`.

    The tag outlives `Image.convert`, by which torchvision's loader reads; `ImageOps.exif_transpose` takes it away.

    Raises:
        OSError: it is read only now, and truncated.

    Examples:
        >>> image = Image.new("L", (4, 3))
        >>> image.getexif()[0x0112] = 6  # the camera was held upright
        >>> upright_rgb(image).size
        (3, 4)
    """
    image.load()  # before the orientation, as in `_read`
    orientation = _orientation(image)
    return _upright(to_rgb(image), orientation)


def shown_path(path: Path, root: Path | None = None) -> str:
    """A path, below `root` if given, as text with slashes; bytes that are no UTF-8 show as replacement characters."""
    path = path if root is None else path.relative_to(root)
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")
