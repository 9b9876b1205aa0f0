"""Photographs of any size that people take are read; what would fill the memory is not, unless somebody allows it."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from cae.data import ImageError, read_image
from cae.data import images as pictures
from cae.data.images import LARGE, MAX_PIXELS, image_size, max_pixels, most_memory


def ramp(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Dark on the left, bright on the right."""
    shades = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(shades, (height, width)).copy()).convert(mode)


def is_ramp(image: Image.Image) -> bool:
    row = np.asarray(image.convert("L")).astype(float).mean(axis=0)
    return np.corrcoef(row, np.arange(len(row)))[0, 1] > 0.99 and row[0] < 20 and row[-1] > 235


def bomb(width: int, height: int, colours: int = 2) -> io.BytesIO:
    """A PNG that says that it is so large, in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(12_000, 9000), (24_000, 4200), (4200, 24_000)])
def test_photographs_and_panoramas_are_decoded_small(size):
    assert size[0] * size[1] > LARGE
    file = io.BytesIO()
    ramp(*size, "L").save(file, "JPEG")
    image = read_image(file, 224)
    assert min(image.size) >= 448
    assert image.width * image.height < 8_000_000
    assert is_ramp(image)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "I;16"])
def test_formats_without_a_draft_are_made_smaller_in_blocks(monkeypatch, mode):
    """What happens beyond `LARGE`, on pictures that a test can make quickly."""
    monkeypatch.setattr(pictures, "LARGE", 100_000)
    picture = ramp(600, 300, "L").convert("I;16") if mode == "I;16" else ramp(600, 300, mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    image = read_image(file, 32)
    assert image.size == (150, 75)
    assert is_ramp(image)
    assert read_image(file).size == (600, 300)


def test_pictures_up_to_the_limit_of_pillow_stay_as_they_are_to_the_bit():
    file = io.BytesIO()
    ramp(600, 300).save(file, "PNG")
    np.testing.assert_array_equal(np.asarray(read_image(file, 32)), np.asarray(ramp(600, 300)))


@pytest.mark.parametrize("side", [None, 224])
@pytest.mark.parametrize("file", [bomb(60_000, 60_000), bomb(2**31 - 1, 2**31 - 1), bomb(100_000, 30_000, colours=0)])
def test_bombs_are_refused_from_the_header_on(file, side):
    with pytest.raises(ImageError, match=r"^over the limit of \d\.\d GB of memory: .* --max-pixels$"):
        read_image(file, side)


def test_what_is_allowed_goes_by_the_memory_that_it_takes(monkeypatch):
    assert 0 < most_memory() <= 2**31
    file, progressive = io.BytesIO(), io.BytesIO()
    ramp(1600, 1200).save(file, "JPEG")
    ramp(1600, 1200).save(progressive, "JPEG", progressive=True)
    monkeypatch.setattr(pictures, "most_memory", lambda: 2_000_000)
    assert read_image(file, 100).size == (400, 300)
    with pytest.raises(ImageError, match="memory"):
        read_image(file)
    with pytest.raises(ImageError, match="memory"):
        read_image(progressive, 100)  # decoded small as well, but from all its coefficients


def test_a_jpeg_in_several_scans_takes_all_its_coefficients(monkeypatch):
    """A baseline JPEG may hold its channels one after the other, and is then no cheaper than a progressive one."""
    file = io.BytesIO()
    ramp(1600, 1200).save(file, "JPEG")
    content = bytearray(file.getvalue())
    start = content.index(b"\xff\xda")
    assert content[start + 4] == 3  # channels in the scan
    content[start + 4] = 1
    monkeypatch.setattr(pictures, "most_memory", lambda: 2_000_000)
    with pytest.raises(ImageError, match="memory"):
        read_image(io.BytesIO(bytes(content)), 100)


def test_who_says_how_many_pixels_is_heeded(monkeypatch):
    file = io.BytesIO()
    ramp(40, 30).save(file, "PNG")
    assert max_pixels() is None
    monkeypatch.setenv(MAX_PIXELS, "1199")
    with pytest.raises(
        ImageError, match=r"^over the limit of 1,199 pixels: it has 1,200; allow more with --max-pixels$"
    ):
        read_image(file)
    monkeypatch.setenv(MAX_PIXELS, "1200")
    monkeypatch.setattr(pictures, "most_memory", lambda: 10)
    assert read_image(file).size == (40, 30)
    monkeypatch.setenv(MAX_PIXELS, "many")
    with pytest.raises(ImageError, match="CAE_MAX_PIXELS must be a whole number of pixels, got 'many'"):
        read_image(file)


@pytest.mark.parametrize(
    ("shape", "options", "counted"),
    [
        ((10, 10, 3000), {"planarconfig": "contig"}, 75_000),
        ((1000, 10, 10), {"volumetric": True}, 25_000),
        ((10, 10, 4), {"planarconfig": "contig"}, 100),
    ],
    ids=["bands", "slices", "four bands"],
)
def test_bands_and_slices_count_as_pixels(monkeypatch, shape, options, counted):
    """Few pixels of thousands of samples each take the memory of many."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros(shape, np.float16), photometric="minisblack", **options)
    monkeypatch.setenv(MAX_PIXELS, str(counted))
    assert read_image(file).size == (10, 10)
    monkeypatch.setenv(MAX_PIXELS, str(counted - 1))
    deeper = f" of {max(shape):,} samples each, bands or slices, which count as {counted:,}" if counted > 100 else ""
    with pytest.raises(ImageError, match=f"^over the limit of {counted - 1:,} pixels: it has 100{deeper}; allow more"):
        read_image(file)


def test_the_limit_of_pillow_is_heeded_where_it_is_lower_only(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert max_pixels() == 10
    for other in (None, 10**12):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", other)
        assert max_pixels() is None
        with pytest.raises(ImageError, match="memory"):
            read_image(bomb(60_000, 60_000))


def test_sizes_are_told_without_decoding(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000).getvalue())
    assert image_size(tmp_path / "bomb.png") == (60_000, 60_000)
