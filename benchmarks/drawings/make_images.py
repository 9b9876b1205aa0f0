"""Make the drawings, a hard set of pictures for benchmarks, out of Debian's Open Clip Art packages. For maintainers.

    apt-get download openclipart-png openclipart-svg
    for package in openclipart-*.deb; do dpkg-deb -x "$package" clipart; done
    python benchmarks/drawings/make_images.py clipart

A category is a folder of the packages, and the folder is the only label: nobody sorted, cleaned or picked single
pictures. Of each folder the first 30 pictures are taken, in the order of the hash of their names (in alphabetical
order they would be thirty apples), leaving out those

- whose own metadata do not put them in the public domain,
- that embed or link a photograph, whose rights the metadata do not speak about,
- that are blank, tiny, or more than three times as long as wide (or as wide as long),
- that look nearly the same as one already taken: recoloured, outlined or renamed copies.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

CATEGORIES = {
    "birds": "animals/birds",
    "bugs": "animals/bugs",
    "computers": "computer/hardware",
    "desserts": "food/desserts",
    "flags": "signs_and_symbols/flags/africa",
    "flowers": "plants/flowers",
    "fruit": "food/fruit",
    "homes": "buildings/homes",
    "music": "recreation/music",
    "road_signs": "transportation/roadsigns",
}
PER_CATEGORY = 30
SIDE, MARGIN = 192, 8  # pixels
MAX_PIXELS = 40_000_000  # of an original; a few have hundreds of millions
WHITE = 8  # grey levels below white that still count as white
LEAST_INK = 0.02  # share of pixels that are not white
NEARLY_SAME = 0.03  # mean difference of two pictures at 16 × 16 grey pixels, of 1

DC = "{http://purl.org/dc/elements/1.1/}"
CC = "{http://web.resource.org/cc/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SVG = "{http://www.w3.org/2000/svg}"
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"


class Source(NamedTuple):
    """One row of SOURCES.csv."""

    file: str
    category: str
    title: str
    author: str
    license: str
    original: str


def main(root: Path) -> None:
    """Replace the drawings and SOURCES.csv, given the folder that both packages were unpacked into."""
    clipart = root / "usr" / "share" / "openclipart"
    images = Path(__file__).parent / "images"
    shutil.rmtree(images, ignore_errors=True)
    sources = [source for category in CATEGORIES for source in make_category(category, clipart, images)]
    with (images.parent / "SOURCES.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Source._fields)
        writer.writerows(sources)


def make_category(category: str, clipart: Path, images: Path) -> Iterator[Source]:
    """Write the pictures of one category and yield where each comes from.

    Raises:
        RuntimeError: The folder does not hold enough pictures.
    """
    (images / category).mkdir(parents=True)
    taken: list[np.ndarray] = []
    for png in sorted((clipart / "png" / CATEGORIES[category]).glob("*.png"), key=order):
        original = png.relative_to(clipart / "png")
        credit = public_domain_credit((clipart / "svg" / original).with_suffix(".svg"))
        picture = None if credit is None else drawn(png)
        if credit is None or picture is None:
            continue
        look = np.asarray(picture.resize((16, 16), Image.Resampling.BOX).convert("L"), dtype=np.float32) / 255
        if any(np.abs(look - other).mean() < NEARLY_SAME for other in taken):
            continue
        taken.append(look)
        file = images / category / f"{png.stem}.webp"
        picture.save(file, quality=80, method=6)
        yield Source(f"{category}/{file.name}", category, *credit, PUBLIC_DOMAIN, f"openclipart-png: png/{original}")
        if len(taken) == PER_CATEGORY:
            return
    raise RuntimeError(f"{category} has only {len(taken)} pictures that fit")


def order(path: Path) -> str:
    """A fixed order that has nothing to do with what a picture shows."""
    return hashlib.sha256(path.name.encode()).hexdigest()


def public_domain_credit(svg: Path) -> tuple[str, str] | None:
    """Title and author in the metadata of a drawing, "" where they are not recorded.

    Returns None unless the metadata say public domain, or where the drawing holds an image that is not drawn.
    """
    try:
        drawing = ElementTree.parse(svg).getroot()
    except ElementTree.ParseError:
        return None
    licenses = {element.get(f"{RDF}resource") for element in drawing.iter(f"{CC}license")}
    if licenses != {PUBLIC_DOMAIN} or drawing.find(f".//{SVG}image") is not None:
        return None
    work = f".//{CC}Work"
    return text(drawing, f"{work}/{DC}title"), text(drawing, f"{work}/{DC}creator/{CC}Agent/{DC}title")


def text(drawing: ElementTree.Element, path: str) -> str:
    """The text of the first element at `path`, as one line."""
    found = " ".join((drawing.findtext(path) or "").split())
    return "" if found.startswith("HASH(") else found  # a slip of the library's upload form


def drawn(png: Path) -> Image.Image | None:
    """The picture on a white square of `SIDE` pixels, its transparent borders trimmed; None where it does not fit."""
    with Image.open(png) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        colours = opened.convert("RGBA")
    box = colours.getchannel("A").getbbox()  # not by colour: half of some flags is white
    if box is None:
        return None
    colours = colours.crop(box)
    picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    short, long = sorted(picture.size)
    if long < SIDE // 2 or long > 3 * short:
        return None
    picture.thumbnail((SIDE - 2 * MARGIN, SIDE - 2 * MARGIN), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    ink = (np.asarray(canvas.convert("L")) < 255 - WHITE).mean()
    return canvas if ink >= LEAST_INK else None


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = None  # sizes are checked before decoding
    main(Path(sys.argv[1]))
