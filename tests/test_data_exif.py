"""Whatever a block of metadata holds, a picture that can be decoded is used, and turned as the block says."""

import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from cae.data import ImageFolderData, TorchvisionData, read_image

# Pillow tells of a block that ends too soon, and goes on.
pytestmark = pytest.mark.filterwarnings("ignore:(.*[Cc]orrupt EXIF|Tag (data|offset)):UserWarning")

pillow_heif.register_heif_opener()  # writes as well

SIZE, LEFT_HALF_BLUE = (64, 48), (0, 0, 200)


def directory(entries, offset, following=0):
    """An EXIF directory of (tag, type, count, bytes), little-endian."""
    body, data = struct.pack("<H", len(entries)), b""
    base = offset + 2 + 12 * len(entries) + 4
    for tag, kind, count, raw in sorted(entries):
        if len(raw) <= 4:
            value = raw.ljust(4, b"\0")
        else:
            value, data = struct.pack("<I", base + len(data)), data + raw
        body += struct.pack("<HHI", tag, kind, count) + value
    return body + struct.pack("<I", following) + data


def exif(*main, pointer=0, below=(), orientation=6, following=0):
    """A block that says how the camera was held, and what else it is given; `below` goes where `pointer` points."""
    entries = [(0x0112, 3, 1, struct.pack("<H", orientation)), *main]
    if pointer:
        size = len(directory([*entries, (pointer, 4, 1, b"\0" * 4)], 8))
        entries.append((pointer, 4, 1, struct.pack("<I", 8 + size)))
        return b"Exif\0\0II*\0\x08\0\0\0" + directory(entries, 8) + directory(list(below), 8 + size)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory(entries, 8, following)


GPS, SUB = 0x8825, 0x8769
ODD = {
    "a rational of -1/0": exif((0x011A, 10, 1, struct.pack("<ii", -1, 0))),
    "a height below the sea": exif(pointer=GPS, below=[(6, 10, 1, struct.pack("<ii", -12, 1))]),
    "a number of the wrong type": exif((0x0213, 7, 1, b"\x01")),
    "an index of interoperability in the main directory": exif((0xA005, 2, 4, b"R98\0")),
    "XMP as text": exif((0x02BC, 2, 9, b"<xmp/>  \0")),
    "a unit out of range": exif((0x0128, 4, 1, struct.pack("<I", 70_000))),
    "a double that is no number": exif((0x011A, 12, 1, struct.pack("<d", float("nan")))),
    "an infinite float": exif((0x011B, 11, 1, struct.pack("<f", float("inf")))),
    "no value at all": exif((0x011A, 5, 0, b"")),
    "a type that does not exist": exif((0x010F, 99, 1, b"ab")),
    "values beyond the end of the block": exif((0x010F, 2, 60_000, struct.pack("<I", 50_000))),
    "text that is no text": exif((0x010E, 2, 5, b"\xff\xfe\0\xd8\xff")),
    "a pointer to nowhere": exif((SUB, 4, 1, struct.pack("<I", 2**31))),
    "a pointer to the directory itself": exif((SUB, 4, 1, struct.pack("<I", 8))),
    "a pointer that is a text": exif((GPS, 2, 8, b"nowhere\0")),
    "a next directory that is this one": exif(following=8),
    "a time of exposure of 0/0": exif(pointer=SUB, below=[(0x829A, 5, 1, b"\0" * 8)]),
    "notes of the maker that are noise": exif(pointer=SUB, below=[(0x927C, 7, 40, bytes(range(200, 240)))]),
    "a negative width": exif(pointer=SUB, below=[(0xA002, 9, 1, struct.pack("<i", -5))]),
    "a block cut short": exif((0x010F, 2, 100, b"a" * 100))[:-90],
}


def picture() -> Image.Image:
    pixels = np.full((SIZE[1], SIZE[0], 3), (200, 30, 30), dtype=np.uint8)
    pixels[:, :32] = LEFT_HALF_BLUE
    return Image.fromarray(pixels)


def stored(format: str, block: bytes) -> io.BytesIO:
    file = io.BytesIO()
    picture().save(file, format, exif=block)
    return file


@pytest.mark.parametrize("side", [None, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ODD)
def test_odd_tags_neither_lose_a_picture_nor_leave_it_lying(name, format, side):
    image = read_image(stored(format, ODD[name]), side)
    # By orientation 6 the left half of what is stored is the upper half of what was seen.
    width, height = image.size
    assert 4 * width == 3 * height
    assert image.getpixel((width // 2, height // 6))[2] > 150
    assert image.getpixel((width // 2, height * 5 // 6))[0] > 150


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does(orientation):
    file = stored("PNG", exif(orientation=orientation))
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(file)), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_none(orientation):
    assert read_image(stored("JPEG", exif(orientation=orientation))).size == SIZE


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*"])
def test_a_block_that_cannot_be_read_is_none(block):
    assert read_image(stored("JPEG", block)).size == SIZE


@pytest.mark.parametrize("compression", [None, "tiff_deflate", "tiff_lzw"])
def test_a_turned_tiff_is_turned_once(tmp_path, compression):
    picture().save(tmp_path / "turned.tiff", tiffinfo={0x0112: 6}, compression=compression)
    image = read_image(tmp_path / "turned.tiff")
    assert image.size == (48, 64)
    assert image.getpixel((24, 10)) == LEFT_HALF_BLUE


def turned_by_the_data_set(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image)


@pytest.mark.parametrize("loader", [default_loader, Image.open, turned_by_the_data_set, read_image])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_data_set_of_torchvision_is_turned_as_a_folder_is(tmp_path, format, orientation, loader):
    (tmp_path / "class").mkdir()
    file = tmp_path / "class" / f"turned.{format.lower()}"
    picture().save(file, format, exif=exif(orientation=orientation))
    read = TorchvisionData(ImageFolder(tmp_path, loader=loader)).images.read(0, None)
    np.testing.assert_array_equal(np.asarray(read), np.asarray(ImageFolderData(tmp_path).images.read(0, None)))
    assert read.size == ((48, 64) if orientation in (6, 8) else SIZE)


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_turned_pictures_of_phones_are_turned_once(format):
    image = read_image(stored(format, exif()))
    assert image.size == (48, 64)
    assert image.getpixel((24, 10))[2] > 150
