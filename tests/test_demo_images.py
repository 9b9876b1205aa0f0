"""cae/demo: the shipped pictures are many, small, readable, and each has its origin recorded."""

import csv
from collections import Counter

from PIL import Image

from cae.data.demo import demo_images

PICTURES = sorted(demo_images().rglob("*.webp"))


def test_ten_categories_of_thirty():
    counts = Counter(picture.parent.name for picture in PICTURES)
    assert len(counts) == 10
    assert set(counts.values()) == {30}


def test_every_picture_opens_at_the_same_size():
    for picture in PICTURES:
        with Image.open(picture) as image:
            image.load()
            assert (image.mode, image.size) == ("RGB", (192, 192))


def test_pictures_take_little_room():
    assert sum(picture.stat().st_size for picture in PICTURES) < 4_000_000


def test_every_picture_is_public_domain_and_has_its_origin_recorded():
    with (demo_images().parent / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    assert sorted(source["file"] for source in sources) == [
        picture.relative_to(demo_images()).as_posix() for picture in PICTURES
    ]
    for source in sources:
        assert source["license"] == "http://web.resource.org/cc/PublicDomain"
        assert source["category"] == source["file"].split("/")[0]
        assert source["title"]
        assert source["original"].startswith("openclipart-png: png/")
