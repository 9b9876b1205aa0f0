"""Pictures of every kind that a folder may hold, and files that are none."""

import numpy as np
import pytest
from PIL import Image

from cae.data import ImageError, list_images, read_image


def gradient(mode: str, size=(40, 30)) -> Image.Image:
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(ramp).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("P", "RGBA", "LA", "1")),
        *(("a.jpg", mode) for mode in ("CMYK", "L")),
        *((name, "RGB") for name in ("a.gif", "a.webp", "a.tiff", "a.bmp", "A.JPEG")),
    ],
)
def test_reads_every_mode_as_rgb(tmp_path, name, mode):
    gradient(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_16_bit_grey_keeps_its_shades(tmp_path, ending):
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    read = np.asarray(read_image(tmp_path / f"deep.{ending}"))[..., 0]
    np.testing.assert_allclose(read, values / 257, atol=1)


def test_transparency_shows_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient("RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (30, 40)


def test_a_large_jpeg_is_decoded_small_but_never_below_twice_the_side(tmp_path):
    gradient("RGB", (1600, 1200)).save(tmp_path / "large.jpg")
    assert read_image(tmp_path / "large.jpg", side=100).size == (400, 300)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
)
def test_files_that_are_no_pictures_are_named_as_such(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png")


def test_truncated_pictures_are_refused(tmp_path):
    gradient("RGB", (200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "cut.jpg")


def test_a_picture_under_another_ending_is_read(tmp_path):
    gradient("RGB").save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "called.jpg")
    assert read_image(tmp_path / "called.jpg").size == (40, 30)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    gradient("RGB").save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="pixels"):
        read_image(tmp_path / "huge.png")


def test_lists_recursively_in_order_and_passes_over_the_rest(tmp_path):
    for name in ("b/2.png", "a/c/1.JPG", "3.webp", ".hidden.png", ".cache/4.png", "notes.txt", "paper.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["3.webp", "a/c/1.JPG", "b/2.png"]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no pictures"):
        list_images(tmp_path)
