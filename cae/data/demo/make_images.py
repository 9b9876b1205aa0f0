"""Make the demo's images: photographs out of a Debian package, and drawings. For maintainers; users have them already.

    apt-get download gcompris-qt-data
    dpkg-deb -x gcompris-qt-data_*.deb packages
    python -m cae.data.demo.make_images packages benchmarks/drawings

A subject is one or more folders of the package, or the files of a folder with one name and a number, and that is the
only label: nobody sorted, cleaned or picked single images. All of a folder are taken but those whose credit in the
package is missing, or names neither the public domain nor a Creative Commons licence which lets everybody use and
change the image, and those that are tiny. GCompris has five subjects of a dozen photographs and more; its tour of
countries and their monuments is none of them, for it shows landscapes, too. The others are folders of
`benchmarks/drawings` that an ImageNet network can know, whole and as they are.

Photographs are scaled down; cut-outs, which have no background, are put on a white square.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from PIL import Image, ImageOps

from cae.data.demo import demo_images

GCOMPRIS = "gcompris-qt-data"
ACTIVITIES = ("categorization", "erase", "explore_farm_animals", "explore_world_animals")
# Regular expressions for `<activity>/<path in its resources>`.
PHOTOGRAPHS = {
    "animals": r"(erase|explore_\w+_animals/animals)/\w+\.webp",
    "fish": r"categorization/images/fishes/\w+\.webp",
    "monuments": r"categorization/images/monuments/\w+\.webp",
    "tools": r"categorization/images/tools/\w+\.webp",
    "windmills": r"categorization/images/renewable/windmill\d*\.webp",
}
DRAWINGS = ("computers", "flowers", "road_signs")
SIDE, MARGIN = 224, 8  # pixels
SMALLEST = 64  # pixels of the longer side
FREE = re.compile(r"Public domain|CC0-1\.0|CC-BY(-SA)?[- ][\d.]+", re.IGNORECASE)
FIELD = re.compile(r"^(\w+):(.*(?:\n(?!\w+:).*)*)", re.MULTILINE)  # as far as the next one
FOLDER, COMPRESSED_ZLIB, COMPRESSED_ZSTD = 2, 1, 4  # flags of an entry of a Qt resource file


class Credit(NamedTuple):
    """Who made an image, what may be done with it, and where it comes from."""

    author: str
    license: str
    source: str


class Source(NamedTuple):
    """One row of SOURCES.csv."""

    file: str
    subject: str
    author: str
    license: str
    source: str
    original: str


def main(root: Path, drawings: Path) -> None:
    """Replace the demo's images and SOURCES.csv.

    Args:
        root: the folder that the package was unpacked into.
        drawings: `benchmarks/drawings`.
    """
    images = demo_images()
    shutil.rmtree(images, ignore_errors=True)
    found = {path: image for activity in ACTIVITIES for path, image in gcompris_images(root, activity).items()}
    sources = [source for subject in PHOTOGRAPHS for source in make_subject(subject, found, images)]
    sources += copied(drawings, images)
    with (images.parent / "SOURCES.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Source._fields)
        writer.writerows(sorted(sources))


def make_subject(subject: str, found: dict[str, tuple[bytes, Credit]], images: Path) -> Iterator[Source]:
    """Write the photographs of one subject and yield where each comes from."""
    (images / subject).mkdir(parents=True)
    for original in sorted(path for path in found if re.fullmatch(PHOTOGRAPHS[subject], path)):
        content, credit = found[original]
        image = small(content)
        if image is not None:
            file = _unused(images / subject / Path(original).name)
            image.save(file, quality=80, method=6)
            yield Source(f"{subject}/{file.name}", subject, *credit, f"{GCOMPRIS}: {original}")


def _unused(file: Path) -> Path:
    """The file, numbered where there is one: two folders hold a horse."""
    names = (file.with_stem(f"{file.stem}_{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([file], names) if not name.exists())


def copied(drawings: Path, images: Path) -> Iterator[Source]:
    """Copy the subjects that are drawn, and yield where each drawing comes from."""
    with (drawings / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in DRAWINGS]
    for row in rows:
        place = images / row["file"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawings / "images" / row["file"], place)
        author, source = row["author"] or "unknown", "http://www.openclipart.org"
        yield Source(row["file"], row["category"], author, "Public Domain", source, row["original"])


def gcompris_images(root: Path, activity: str) -> dict[str, tuple[bytes, Credit]]:
    """The free images of one of GCompris's activities, each with the credit that lies in a README near it.

    The package's copyright file speaks of other images, which earlier releases had under the same names.
    """
    archive = (root / "usr" / "share" / "gcompris-qt" / "rcc" / f"{activity}.rcc").read_bytes()
    resources = f"/gcompris/src/activities/{activity}/resource"
    files = {name.replace(resources, activity): content for name, content in qt_resources(archive)}
    credits = {
        f"{Path(readme).parent}/{name}": credit
        for readme, content in files.items()
        if Path(readme).name == "README"
        for name, credit in free_credits(content.decode()).items()
    }
    return {path: (files[path], credit) for path, credit in credits.items() if path in files}


def free_credits(readme: str) -> dict[str, Credit]:
    """The free images in one of GCompris's READMEs: paragraphs of Copyright, Source, License and Files in any order."""
    credits = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = {name: " ".join(value.split()) for name, value in FIELD.findall(paragraph)}
        if {"Copyright", "Source", "Files"} <= fields.keys() and FREE.fullmatch(fields.get("License", "")):
            for file in fields["Files"].split():
                credits[file] = Credit(fields["Copyright"], fields["License"], fields["Source"])
    return credits


def qt_resources(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file in a Qt binary resource file, as Qt's `rcc --binary` writes it.

    Raises:
        ValueError: It is none.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", archive)
    if magic != b"qres":
        raise ValueError("no Qt resource file: it does not begin with qres")
    entry = 14 if version == 1 else 22

    def files(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * entry
        name_at, flags = struct.unpack_from(">IH", archive, at)
        (letters,) = struct.unpack_from(">H", archive, names + name_at)
        name_at += names + 6  # behind the length and a hash
        name = archive[name_at : name_at + 2 * letters].decode("utf-16-be") if index else ""
        path = f"{folder}/{name}" if name else folder
        if flags & FOLDER:
            count, first = struct.unpack_from(">II", archive, at + 6)
            for child in range(first, first + count):
                yield from files(child, path)
            return
        (content_at,) = struct.unpack_from(">I", archive, at + 10)
        (size,) = struct.unpack_from(">I", archive, data + content_at)
        content = archive[data + content_at + 4 :][:size]
        if flags & COMPRESSED_ZLIB:
            content = zlib.decompress(content[4:])
        elif flags & COMPRESSED_ZSTD:
            content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
        yield path, content

    return files(0, "")


def small(content: bytes) -> Image.Image | None:
    """The image at no more than `SIDE` pixels a side; a cut-out on a white square; None where it is tiny."""
    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    if max(image.size) < SMALLEST:
        return None
    if image.getchannel("A").getextrema()[0] == 255:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return image.convert("RGB")
    cut_out = image.crop(image.getchannel("A").getbbox())
    cut_out = ImageOps.contain(cut_out, (SIDE - 2 * MARGIN, SIDE - 2 * MARGIN), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(cut_out, ((SIDE - cut_out.width) // 2, (SIDE - cut_out.height) // 2))
    return square.convert("RGB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
