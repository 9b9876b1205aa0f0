"""Cameras' raw files by the preview in them: made here as cameras lay them out, a TIFF with JPEGs in it."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cae.data import ImageError, list_images, read_image
from cae.data.images import image_size


def jpeg(width: int, height: int, orientation: int | None = None) -> bytes:
    """Blue on the left, red on the right."""
    pixels = np.full((height, width, 3), (200, 30, 30), dtype=np.uint8)
    pixels[:, : width // 2] = (0, 0, 200)
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def raw(magic: bytes = b"II*\0", orientation: int | None = None, *previews: bytes) -> bytes:
    """A head that says how the camera was held, noise for the sensor's values, and previews."""
    entries = [struct.pack("<HHI4s", 0x010F, 2, 4, b"Cam\0")]
    if orientation:
        entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    return magic + struct.pack("<I", 8) + directory + noise + noise.join(previews) + noise


@pytest.mark.parametrize("ending", ["CR2", "NEF", "dng", "ARW", "raf", "rw2", "ORF", "CR3", "pef"])
def test_the_largest_preview_is_the_picture(tmp_path, ending):
    previews = (jpeg(160, 120), jpeg(640, 480), jpeg(320, 240))
    (tmp_path / f"photo.{ending}").write_bytes(raw(b"II*\0", None, *previews))
    assert list_images(tmp_path) == [tmp_path / f"photo.{ending}"]
    image = read_image(tmp_path / f"photo.{ending}")
    assert image.size == image_size(tmp_path / f"photo.{ending}") == (640, 480)
    assert image.getpixel((100, 200))[2] > 150
    assert read_image(tmp_path / f"photo.{ending}", 100).size == (320, 240)


@pytest.mark.parametrize("magic", [b"II*\0", b"IIRO", b"IIU\0"])
def test_a_preview_is_turned_as_the_camera_was_held(tmp_path, magic):
    (tmp_path / "photo.nef").write_bytes(raw(magic, 6, jpeg(640, 480)))
    image = read_image(tmp_path / "photo.nef")
    assert image.size == (480, 640)
    assert image.getpixel((200, 100))[2] > 150


def test_a_preview_that_says_so_itself_is_turned_once(tmp_path):
    (tmp_path / "photo.nef").write_bytes(raw(b"II*\0", 6, jpeg(640, 480, orientation=6)))
    assert read_image(tmp_path / "photo.nef").size == (480, 640)


def test_starts_of_jpegs_that_are_none_are_passed_over(tmp_path):
    decoys = b"\xff\xd8\xff" + b"\0" * 100 + b"\xff\xd8\xff\xc3" + b"\xff\xd8\xff\xe1\xff\xff" + b"a" * 50
    (tmp_path / "photo.arw").write_bytes(raw(b"II*\0", None, decoys, jpeg(64, 48), decoys))
    assert read_image(tmp_path / "photo.arw").size == (64, 48)


def test_a_picture_under_the_ending_of_a_raw_file_is_read(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "plain.dng", "TIFF")
    (tmp_path / "really.cr2").write_bytes(jpeg(64, 48))
    assert read_image(tmp_path / "plain.dng").size == (40, 30)
    assert read_image(tmp_path / "really.cr2").size == (64, 48)


@pytest.mark.parametrize("content", [b"", b"nothing", raw(), b"\0" * 1_000_000, b"\xff\xd8\xff" * 10_000])
def test_a_raw_file_without_a_preview_is_named(tmp_path, content):
    (tmp_path / "photo.cr2").write_bytes(content)
    with pytest.raises(ImageError):
        read_image(tmp_path / "photo.cr2")
