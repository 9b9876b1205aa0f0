"""What a folder holds: every picture once, and what looks like one but is not used counted and named."""

import logging
import os
import random
import shutil

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from cae.data import ImageError, ImageFolderData, list_folder, list_images, read_image
from cae.data.listing import UNREAD, left_out_lines

pillow_heif.register_heif_opener()  # writes as well


def save(path, format=None, shade=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), shade, dtype=np.uint8)).save(path, format)
    return path


def names(root):
    return [path.relative_to(root).as_posix() for path in list_folder(root).images]


@pytest.mark.parametrize("ending", ["heic", "HEIC", "heif", "hif", "avif", "AVIF"])
def test_photographs_of_phones_are_read(tmp_path, ending):
    save(tmp_path / f"photo.{ending}", "AVIF" if ending.lower() == "avif" else "HEIF")
    assert names(tmp_path) == [f"photo.{ending}"]
    image = read_image(tmp_path / f"photo.{ending}")
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert image.getpixel((5, 5))[0] == pytest.approx(90, abs=3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF"])
@pytest.mark.parametrize(
    "name", ["noending", "photo.jpg!d", "photo.jpg~", "2024-05-01 12.30", "photo.jpg", "photo.dat"]
)
def test_content_tells_pictures_of_any_name(tmp_path, name, format):
    save(tmp_path / name, format)
    assert names(tmp_path) == [name]
    assert read_image(tmp_path / name).size == (40, 30)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"BM",
        b"BMW and others",
        b"text",
        b"%PDF-1.7",
        b"PK\3\4",
        b"\0" * 64,
        b"RIFF\0\0\0\0WAVE",
        b"\0\0\0\x18ftypmp42",
    ],
)
def test_other_files_are_passed_over_without_a_word(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other.txt").write_bytes(content)
    listing = list_folder(tmp_path)
    assert (listing.images, listing.left_out) == ([], {})


def test_a_damaged_picture_of_any_name_is_listed_so_that_it_can_be_named(tmp_path):
    save(tmp_path / "whole", "JPEG")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:200])
    assert names(tmp_path) == ["cut", "whole"]
    with pytest.raises(ImageError):
        read_image(tmp_path / "cut")


@pytest.mark.parametrize("ending", sorted(UNREAD))
def test_pictures_that_nothing_reads_are_named_with_a_remedy(tmp_path, ending):
    (tmp_path / f"picture{ending.upper()}").write_bytes(b"anything")
    save(tmp_path / "one.png")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.images] == ["one.png"]
    (path, reason), *more = listing.left_out.items()
    assert path.name == f"picture{ending.upper()}"
    assert "export them as PNG" in reason
    assert not more


def test_files_left_out_are_counted_by_reason_and_a_few_named():
    left_out = {f"{i}.svg": "export it" for i in range(1200)} | {"a.jpg": "it is empty", "b": "it is empty"}
    assert left_out_lines(left_out) == [
        "skipped 1,200 .svg files (0.svg, 1.svg, 2.svg, …): export it",
        "skipped a.jpg: it is empty",
        "skipped b: it is empty",
    ]


def test_python_is_told_as_well(tmp_path, caplog):
    save(tmp_path / "one.png")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    with caplog.at_level(logging.WARNING, logger="cae"):
        ImageFolderData(tmp_path)
    assert "skipped drawing.svg" in caplog.text


def test_a_folder_of_nothing_that_is_read_says_what_it_holds(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.svg").write_text("<svg/>")
    with pytest.raises(ImageError, match=r"no pictures in .*; skipped 3 \.svg files \(0\.svg, 1\.svg, 2\.svg\): "):
        list_images(tmp_path)


@pytest.mark.parametrize("name", ["photo.jpg", "photo"])
@pytest.mark.parametrize("target", ["gone.jpg", "a" * 300 + ".jpg", "loop", "one.png/below.jpg"])
def test_a_broken_link_of_any_kind_costs_that_link_alone(tmp_path, name, target):
    save(tmp_path / "one.png")
    (tmp_path / "link.png").symlink_to("one.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / name).symlink_to(target)
    assert set(names(tmp_path)) == {"one.png"} | ({name} if name.endswith(".jpg") else set())


@pytest.mark.parametrize("linked", [{"cats"}, {"cats", "dogs"}])
def test_class_folders_may_be_links_to_a_store(tmp_path, linked):
    for name in ("cats", "dogs"):
        for i in range(3):
            save((tmp_path / "store" if name in linked else tmp_path / "root") / name / f"{i}.png")
    (tmp_path / "root").mkdir(exist_ok=True)
    for name in linked:
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    assert names(tmp_path / "root") == [f"{name}/{i}.png" for name in ("cats", "dogs") for i in range(3)]
    assert list_folder(tmp_path / "root").left_out == {}
    assert ImageFolderData(tmp_path / "root").classes == ["cats", "dogs"]


def test_the_folder_itself_may_be_a_link_and_links_may_be_relative(tmp_path):
    save(tmp_path / "store/cats/0.png")
    (tmp_path / "real").mkdir()
    (tmp_path / "real/cats").symlink_to("../store/cats")
    (tmp_path / "root").symlink_to("real")
    assert names(tmp_path / "root") == ["cats/0.png"]


def test_loops_of_links_end_and_each_folder_and_file_comes_once(tmp_path):
    root = tmp_path / "root"
    save(root / "a/b/1.png")
    save(tmp_path / "store/2.png")
    (root / "a/b/up").symlink_to(root / "a")
    (root / "a/self").symlink_to(".")
    (root / "again").symlink_to(root / "a/b")
    (root / "first").symlink_to(tmp_path / "store")
    (root / "second").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(root)
    (root / "file.png").symlink_to(root / "a/b/1.png")
    (root / "z1.png").symlink_to(tmp_path / "store/2.png")
    save(tmp_path / "elsewhere.png")
    (root / "e1.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "e2.png").symlink_to(tmp_path / "elsewhere.png")
    listing = list_folder(root)
    assert names(root) == ["a/b/1.png", "e1.png", "first/2.png"]
    assert listing.left_out == {}


@pytest.mark.parametrize("to", ["..", "../..", "/"])
def test_a_link_to_a_folder_around_is_told_and_not_followed(tmp_path, to):
    root = tmp_path / "outer/root"
    save(root / "1.png")
    save(tmp_path / "outer/private.png")
    (root / "out").symlink_to(to)
    listing = list_folder(root)
    assert [path.name for path in listing.images] == ["1.png"]
    assert {path.name: why for path, why in listing.left_out.items()} == {
        "out": "a link to a folder around this one, which is not followed; link to what is needed"
    }


def test_links_to_hidden_stores_are_followed_and_hidden_names_are_not(tmp_path):
    save(tmp_path / ".store/1.png")
    (tmp_path / "cats").symlink_to(".store")
    (tmp_path / ".dogs").symlink_to(".store")
    assert names(tmp_path) == ["cats/1.png"]


def test_files_without_an_ending_may_be_links(tmp_path):
    save(tmp_path / "annex/objects/SHA256E-s123--abc", "JPEG")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/photo").symlink_to(tmp_path / "annex/objects/SHA256E-s123--abc")
    (tmp_path / "root/drawing.svg").symlink_to(tmp_path / "annex/objects/SHA256E-s123--abc")
    assert names(tmp_path / "root") == ["photo"]
    assert [path.name for path in list_folder(tmp_path / "root").left_out] == ["drawing.svg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    save(tmp_path / "open/1.png")
    save(tmp_path / "locked/2.png")
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.images] == ["1.png"]
    assert list(listing.left_out.values()) == [
        "a folder that cannot be listed (Permission denied); see to its permissions"
    ]


def test_pipes_called_like_pictures_are_named_and_never_opened(tmp_path):
    save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.images] == ["1.png"]
    assert {path.name: why for path, why in listing.left_out.items()} == {
        "endless.png": "a pipe or a device, not a file",
        "pipe.png": "a pipe or a device, not a file",
    }


def test_reports_and_hidden_files_are_passed_over(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache/2.png")
    save(tmp_path / "report/report_files/thumbnails/0.webp")
    shutil.copy(tmp_path / "1.png", tmp_path / "report/report_files/kept.safetensors")
    assert names(tmp_path)[0] == "1.png"
    assert all("thumbnails" not in name for name in names(tmp_path))


@pytest.mark.parametrize(
    "ending", ["tga", "pcx", "sgi", "dds", "ico", "icns", "jp2", "ppm", "dib", "blp", "msp", "xbm"]
)
def test_what_pillow_writes_is_read_under_its_ending(tmp_path, ending):
    mode = {"blp": "P", "msp": "1", "xbm": "1"}.get(ending, "RGB")
    Image.new("RGB", (32, 32), (250, 250, 250)).convert(mode).save(tmp_path / f"image.{ending}")
    assert names(tmp_path) == [f"image.{ending}"]
    assert np.asarray(read_image(tmp_path / f"image.{ending}")).mean() > 200


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_no_image_under_any_ending(tmp_path, seed):
    (tmp_path / "noise.jpg").write_bytes(random.Random(seed).randbytes(5000))
    with pytest.raises(ImageError, match="not a picture in any format"):
        read_image(tmp_path / "noise.jpg")
