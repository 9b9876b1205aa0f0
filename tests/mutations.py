"""Damaged pictures by number: case i is the same bytes on every run, so that a crash can be looked into.

Run as a program it reads cases START to STOP and prints a line each, `NUMBER VERDICT`; whoever started it sees a
crash, or that no line comes any more.
"""

import io
import os
import random
import resource
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

ROOM = 2 << 30
"""Bytes that reading a picture may take at most: a small file may hold 89 million pixels, Pillow's limit."""
ADDRESSES = 8 << 30
"""Bytes that they may ask for at most; what is asked for and never written to takes no memory."""
PATIENCE_S = 60
FEW_WARNINGS = 5
NOISE = 100
"""Characters a case, on average, that libraries in C may print."""


@cache
def seeds() -> dict[str, bytes]:
    """Small whole pictures of every format and kind that Pillow writes."""
    Image.init()
    made = {}
    for name, (image, options) in kinds().items():
        if name.split()[0].upper() in Image.SAVE:  # older versions of Pillow write fewer
            buffer = io.BytesIO()
            with warnings.catch_warnings(action="ignore"):  # some formats are on their way out
                image.copy().save(buffer, name.split()[0], **options)  # Pillow leaves settings of a format in an image
            made[name] = buffer.getvalue()
    return {**made, **tiffs_beyond_pillow()}


def tiffs_beyond_pillow() -> dict[str, bytes]:
    """What `cae.data.tiff` reads."""
    made = {}
    wide = np.arange(21 * 33).reshape(21, 33) / 3
    for name, bands in (("tiff double", wide), ("tiff bands", np.stack([wide] * 5, axis=-1).astype(np.float16))):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, bands, photometric="minisblack", planarconfig=1, compression="deflate", metadata=None)
        made[name] = buffer.getvalue()
    return made


def kinds() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """A picture and the options to save it with, by format and kind."""
    values = np.random.default_rng(0).integers(0, 256, (21, 33, 3), dtype=np.uint8)
    values[5:15] = np.arange(33, dtype=np.uint8)[None, :, None]  # something to compress
    picture = Image.fromarray(values)
    grey16 = Image.fromarray((values[..., 0].astype(np.uint16) << 8) + 7)
    numbers = Image.fromarray(values[..., 0].astype(np.float32) / 3)
    clear = picture.copy()
    clear.putalpha(picture.convert("L"))
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a description"

    def several():
        return {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}

    return {
        "png": (picture, {}),
        "png palette": (picture.convert("P"), {"transparency": 3}),
        "png bits": (picture.convert("1"), {}),
        "png clear": (clear, {"exif": turned, "icc_profile": bytes(500)}),
        "png 16": (grey16, {}),
        "png animated": (picture, several()),
        "jpeg": (picture, {}),
        "jpeg progressive": (picture, {"progressive": True, "quality": 60}),
        "jpeg cmyk": (picture.convert("CMYK"), {}),
        "jpeg grey": (picture.convert("L"), {}),
        "jpeg turned": (picture, {"exif": turned, "icc_profile": bytes(500), "comment": b"a comment"}),
        "mpo": (picture, several()),
        "webp": (picture, {}),
        "webp lossless": (clear, {"lossless": True, "exif": turned}),
        "webp animated": (picture, several()),
        "gif": (picture, {}),
        "gif animated": (picture, several()),
        "bmp": (picture, {}),
        "bmp palette": (picture.convert("P"), {}),
        "dib": (picture, {}),
        "tiff": (picture, {}),
        "tiff pages": (picture, {**several(), "compression": "tiff_lzw"}),
        "tiff 16": (grey16, {"compression": "tiff_deflate"}),
        "tiff float": (numbers, {}),
        "tiff cmyk": (picture.convert("CMYK"), {"compression": "packbits", "exif": turned}),
        "tiff jpeg": (picture, {"compression": "jpeg"}),
        "tiff fax": (picture.convert("1"), {"compression": "group4"}),
        "ppm": (picture, {}),
        "tga": (clear, {"compression": "tga_rle"}),
        "ico": (clear, {"sizes": [(16, 16)]}),
        "icns": (picture.resize((32, 32)), {}),
        "pcx": (picture, {}),
        "sgi": (picture, {"rle": True}),
        "dds": (clear, {}),
        "jpeg2000": (picture, {}),
        "avif": (picture, {}),
        "qoi": (picture, {}),
        "im": (picture, {}),
        "msp": (picture.convert("1"), {}),
        "spider": (numbers, {}),
        "blp": (picture.convert("P"), {}),
        "xbm": (picture.convert("1"), {}),
        "eps": (picture, {}),
    }


def mutated(number: int) -> tuple[str, bytes]:
    """Kind and bytes of a case: a seed with one to three damages."""
    chance, names = random.Random(number), list(seeds())
    name = names[number % len(names)]
    content = bytearray(seeds()[name])
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(DAMAGES)(content, chance)
    return name, bytes(content)


def flip_bits(content, chance):
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def flip_early_bits(content, chance):
    """Headers are where formats say how much is to come."""
    for _ in range(chance.randint(1, 4)):
        if content:
            content[chance.randrange(min(len(content), 64))] ^= 1 << chance.randrange(8)
    return content


def set_length(content, chance):
    size = chance.choice((2, 4, 4, 8))
    if len(content) <= size:
        return content
    value = chance.choice((0, 1, len(content), 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63))
    at = chance.randrange(min(len(content) - size, chance.choice((64, 512, len(content)))))
    content[at : at + size] = (value % 256**size).to_bytes(size, chance.choice(("little", "big")))
    return content


def truncate(content, chance):
    return content[: chance.randrange(len(content) + 1)]


def drop(content, chance):
    start = chance.randrange(len(content) + 1)
    del content[start : start + chance.choice((1, 4, 100))]
    return content


def insert(content, chance):
    at = chance.randrange(len(content) + 1)
    content[at:at] = chance.randbytes(chance.choice((1, 4, 100, 5000)))
    return content


def repeat(content, chance):
    start = chance.randrange(len(content) + 1)
    part = content[start : start + chance.choice((8, 64, 512))]
    content[start:start] = part * chance.choice((1, 50))
    return content


def splice(content, chance):
    """The head of this and the tail of another."""
    other = seeds()[chance.choice(list(seeds()))]
    return content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other)) :]


def swap_header(content, chance):
    other = seeds()[chance.choice(list(seeds()))]
    n = chance.choice((4, 8, 16, 64))
    return bytearray(other[:n]) + content[n:]


DAMAGES = (
    flip_bits,
    flip_bits,
    flip_early_bits,
    set_length,
    set_length,
    truncate,
    drop,
    insert,
    repeat,
    splice,
    swap_header,
)


def verdict(path: Path, side: int | None) -> str:
    """`picture`, `refused`, or what must not happen."""
    from cae.cli.commands import quiet_libraries
    from cae.data import ImageError, read_image

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet_libraries()
        try:
            image = read_image(path, side)
            image.resize((8, 8)).tobytes()
            found = "picture" if image.mode == "RGB" and min(image.size) > 0 else f"lost: {image!r}"
        except ImageError as error:
            found = "refused" if str(error) else "lost: refused without a reason"
        except Exception as error:
            found = f"lost: {error!r}"
    return f"lost: {len(said)} warnings, such as {said[0].message}" if len(said) > FEW_WARNINGS else found


def work(start: int, stop: int) -> None:
    from cae.data import read_image  # noqa: F401 (what importing takes does not count)

    seeds()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with tempfile.TemporaryDirectory() as folder:
        for number in range(start, stop):
            path = Path(folder, "picture.jpg")
            path.write_bytes(mutated(number)[1])
            said = verdict(path, 64 if number % 2 else None)
            if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before > ROOM:
                sys.exit("too much memory")
            print(number, said, flush=True)


def verdicts(start: int, stop: int) -> dict[int, str]:
    """Verdicts of cases in processes of their own: a case that kills its process, or keeps it, is lost, too."""
    found: dict[int, str] = {}
    while start < stop:
        arguments = [sys.executable, __file__, str(start), str(stop)]
        with (
            tempfile.TemporaryFile("w+") as lines,
            tempfile.TemporaryFile("w+") as noise,
            subprocess.Popen(arguments, stdout=lines, stderr=noise) as worker,
        ):
            before = -1
            while True:
                try:
                    code = worker.wait(PATIENCE_S)
                    break
                except subprocess.TimeoutExpired:
                    if os.fstat(lines.fileno()).st_size == before:
                        worker.kill()
                        code = worker.wait()
                        break
                    before = os.fstat(lines.fileno()).st_size
            lines.seek(0)
            noise.seek(0)
            for line in lines:
                number, _, said = line.rstrip("\n").partition(" ")
                found[int(number)] = said
            start = max(found, default=start - 1) + 1 if found else start
            loud = noise.read()
            if start < stop:
                found[start] = f"lost: the process ended with {code}: {loud[-300:]}"
                start += 1
            elif len(loud) > NOISE * len(found):  # libtiff says a line of its own for a file that it cannot read
                found[start - 1] = f"lost: printed {len(loud)} characters: {loud[:300]}"
    return found


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
