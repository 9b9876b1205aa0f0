"""cae/data/demo: the shipped pictures are many, small, readable, and each has its origin and its licence recorded."""

import csv
import io
from collections import Counter

import pytest
from PIL import Image

from cae.data.demo import demo_images
from cae.data.demo.make_images import FREE, free_credits, qt_resources, small

PICTURES = sorted(demo_images().rglob("*.webp"))


def test_eight_subjects_of_a_dozen_pictures_and_more():
    counts = Counter(picture.parent.name for picture in PICTURES)
    assert len(counts) == 8
    assert min(counts.values()) >= 12
    assert 200 <= counts.total() <= 400


def test_every_picture_opens_and_is_small():
    for picture in PICTURES:
        with Image.open(picture) as image:
            image.load()
            assert image.mode == "RGB"
            assert 64 <= max(image.size) <= 224


def test_pictures_take_little_room():
    assert sum(picture.stat().st_size for picture in PICTURES) < 6_000_000


def test_every_picture_is_free_and_has_its_origin_recorded():
    with (demo_images().parent / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    assert sorted(source["file"] for source in sources) == [
        picture.relative_to(demo_images()).as_posix() for picture in PICTURES
    ]
    for source in sources:
        assert source["subject"] == source["file"].split("/")[0]
        assert source["author"]
        assert source["source"].startswith(("https://", "http://"))
        assert FREE.fullmatch(source["license"])


def test_only_files_under_a_free_licence_are_credited():
    credits = free_credits(
        "Copyright: Ann and Bob\nSource: https://example.org/a\nLicense: CC0-1.0\nFiles:\na.webp\nb.webp\n \n"
        "Copyright: Cy\nSource: https://example.org/c\nLicense: CC-BY-NC-3.0\nFiles:\nc.webp\n"
    )
    assert set(credits) == {"a.webp", "b.webp"}
    assert credits["b.webp"] == ("Ann and Bob", "CC0-1.0", "https://example.org/a")


def test_the_fields_of_a_credit_stand_in_any_order():
    credits = free_credits(
        "Copyright: Di\nFiles: d.webp\nSource: https://example.org/d\nLicense: Public domain\nComments: cut\n"
    )
    assert credits == {"d.webp": ("Di", "Public domain", "https://example.org/d")}


def test_what_is_no_qt_resource_file_is_refused():
    with pytest.raises(ValueError, match="no Qt resource file"):
        list(qt_resources(b"RIFF" + bytes(40)))


def test_a_cut_out_stands_on_a_white_square_and_a_photograph_keeps_its_shape():
    def png(picture):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    cut_out = Image.new("RGBA", (300, 100), (255, 0, 0, 0))
    cut_out.paste((255, 0, 0, 255), (100, 20, 200, 70))
    picture = small(png(cut_out))
    assert picture.size == (224, 224)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((112, 112)) == (255, 0, 0)
    assert small(png(Image.new("RGB", (448, 224)))).size == (224, 112)
    assert small(png(Image.new("RGB", (30, 30)))) is None
