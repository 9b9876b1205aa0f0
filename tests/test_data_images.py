"""Pictures of every kind that a folder may hold, and files that are none."""

import os

import numpy as np
import pytest
from PIL import GifImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from cae.data import (
    ImageError,
    ImageFolderData,
    list_images,
    read_image,
)
from cae.data.images import image_size


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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1100, 500])  # of 1,200 pixels; over twice the limit Pillow itself refuses
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    gradient("RGB").save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=f"^over the limit of {limit:,} pixels"):
        read_image(tmp_path / "huge.png")


def test_a_link_to_nowhere_is_told_in_words(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"^a link that leads nowhere$"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"^No such file or directory$"):
        read_image(tmp_path / "nowhere.png")


def test_programs_are_never_run_as_pictures(tmp_path, monkeypatch):
    """Pillow reads EPS by handing it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("the program is run"))
    gradient("RGB").save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / "called.jpg")
    with pytest.raises(ImageError, match="without EPS and WMF"):
        read_image(tmp_path / "called.jpg")
    with pytest.raises(ImageError):
        image_size(tmp_path / "called.jpg")


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = np.full((4, 4), 2.0, dtype=np.float32)
    values[0] = np.nan, np.inf, -np.inf, 1
    Image.fromarray(values).save(tmp_path / "odd.tiff")
    assert np.asarray(read_image(tmp_path / "odd.tiff"))[:2, :, 0].tolist() == [[0, 0, 0, 127], [255] * 4]


@pytest.mark.parametrize(("size", "left"), [((20_000, 10), (500, 10)), ((1, 70_000), (1, 50)), ((1, 1), (1, 1))])
def test_pictures_of_any_shape_fit_into_an_encoder(tmp_path, size, left):
    picture = Image.new("RGB", size)
    picture.putpixel((size[0] // 2, size[1] // 2), (9, 9, 9))
    picture.save(tmp_path / "odd.png")
    assert read_image(tmp_path / "odd.png").size == size
    assert read_image(tmp_path / "odd.png", side=260).size == left
    assert read_image(tmp_path / "odd.png", side=260).getpixel((left[0] // 2, left[1] // 2)) == (9, 9, 9)


def test_much_text_in_a_small_picture_is_refused(tmp_path):
    texts = PngInfo()
    for i in range(100):
        texts.add_text(f"key {i}", "a" * 1_000_000, zip=True)
    gradient("RGB").save(tmp_path / "bomb.png", pnginfo=texts)
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(ImageError, match="text"):
        read_image(tmp_path / "bomb.png")


def test_of_many_frames_only_the_first_is_decoded(tmp_path, monkeypatch):
    second = gradient("L").rotate(180)
    gradient("L").save(tmp_path / "two.gif", save_all=True, append_images=[second], duration=10)
    content = (tmp_path / "two.gif").read_bytes()
    start = content.rindex(b"\x21\xf9")  # where the second frame begins
    (tmp_path / "many.gif").write_bytes(content[:start] + content[start:-1] * 100_000 + b";")
    seen, seek = [], GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", lambda self, *at: seen.append(at) or seek(self, *at))
    assert read_image(tmp_path / "many.gif").size == (40, 30)
    assert len(seen) < 3


def test_links_are_followed_to_files_and_nowhere_else(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    gradient("RGB").save(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "lost.png").symlink_to(tmp_path / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "loop").symlink_to(root)
    (root / "up.png").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    (root / "endless.png").symlink_to("/dev/zero")
    found = list_images(root)
    assert [path.name for path in found] == ["link.png", "lost.png", "self.png"]
    assert read_image(found[0]).size == (40, 30)
    for path in found[1:]:
        with pytest.raises(ImageError):
            read_image(path)
    assert ImageFolderData(root).identity


def test_lists_recursively_in_order_and_passes_over_the_rest(tmp_path):
    for name in ("b/2.png", "a/c/1.JPG", "3.webp", ".hidden.png", ".cache/4.png", "notes.txt", "paper.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["3.webp", "a/c/1.JPG", "b/2.png"]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match=r"not a folder but a file: .*one\.png; give the folder"):
        list_images(tmp_path / "one.png")
    (tmp_path / "one.png").unlink()
    with pytest.raises(ImageError, match="no pictures"):
        list_images(tmp_path)
