r"""How well duplicates are found: pictures beside altered copies of them, whose truth is known, and how long it takes.

    python benchmarks/duplicates.py quality DIR... --out WORK [--each 100]    # folders of pictures without duplicates
    python benchmarks/duplicates.py speed RESULT                              # of `cae cluster`

`quality` takes `--each` pictures of every folder, adds an altered copy of each kind, clusters all with the lite encoder
into WORK, and scores pairs: recall by kind of alteration, and precision over all pairs that are called near. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw

import cae
from cae.data import list_folder, read_image
from cae.evaluation.study import machine
from cae.results.duplicates import find_duplicates
from cae.results.saved import SavedResult

THRESHOLDS = (0, 4, 6, 8, 10, 12, 16)
Box = tuple[float, float, float, float]


def crop(box: Box) -> Callable[[Image.Image], Image.Image]:
    """What is inside a box, in shares of width and height."""
    return lambda image: image.crop(tuple(round(v * side) for v, side in zip(box, image.size * 2, strict=True)))  # type: ignore[arg-type]


def resized(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize([max(1, round(factor * side)) for side in image.size])


def watermarked(image: Image.Image) -> Image.Image:
    """A white word, half transparent, across the lower half."""
    layer = Image.new("RGBA", image.size)
    size = image.height // 6
    ImageDraw.Draw(layer).text(
        (image.width // 8, image.height * 2 // 3), "SAMPLE", (255, 255, 255, 150), font_size=size
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


ALTERED: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "half the size": (resized(0.5), 90),
    "twice the size": (resized(2), 90),
    "JPEG quality 30": (lambda image: image, 30),
    "JPEG quality 10": (lambda image: image, 10),
    "watermark": (watermarked, 90),
    "crop, 3% off each side": (crop((0.03, 0.03, 0.97, 0.97)), 90),
    "crop, 5% off each side": (crop((0.05, 0.05, 0.95, 0.95)), 90),
    "crop, 10% off each side": (crop((0.1, 0.1, 0.9, 0.9)), 90),
    "crop, 10% off the left": (crop((0.1, 0, 1, 1)), 90),
    "crop, 20% off two sides": (crop((0.2, 0.2, 1, 1)), 90),
}
"""What is done to a picture, and the JPEG quality that the copy is saved at."""


def build(folders: list[Path], each: int, out: Path) -> None:
    """`out/KIND/NUMBER.jpg`: pictures, and altered copies under the same number."""
    for kind in ("original", *ALTERED):
        (out / kind).mkdir(parents=True, exist_ok=True)
    chosen = [path for folder in folders for path in spread(list_folder(folder).images, each)]
    for number, path in enumerate(chosen):
        image = read_image(path)
        image.save(out / "original" / f"{number}.png")
        for kind, (alter, quality) in ALTERED.items():
            alter(image).save(out / kind / f"{number}.jpg", quality=quality)


def spread(paths: list[Path], n: int) -> list[Path]:
    """So many, from all over a list."""
    return paths[:: max(1, len(paths) // n)][:n]


def quality(folders: list[Path], each: int, work: Path) -> None:
    """Print recall by kind, and precision, at several thresholds."""
    pictures, out = work / "pictures", work / "result"
    if not (out / "run.json").is_file():
        build(folders, each, pictures)
        cae.cluster(pictures, 6, encoder="lite", out=out)
    result = SavedResult.load(out)
    n = len(list((pictures / "original").iterdir()))
    print(f"{n} pictures and {len(ALTERED)} altered copies of each; {machine()}\n")
    print(f"| in percent | {' | '.join(map(str, THRESHOLDS))} |\n|---|{'---|' * len(THRESHOLDS)}")
    rows: dict[str, list[str]] = {}
    for threshold in THRESHOLDS:
        groups = [[copy.path for copy in group.copies] for group in find_duplicates(result, near=threshold).groups]
        for name, value in scores(groups, n).items():
            rows.setdefault(name, []).append(f"{value:.1f}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")


def scores(groups: list[list[str]], n: int) -> dict[str, float]:
    """Percent of altered copies that share a group with their original, by kind; and of grouped pairs that are true."""
    place = {path: i for i, group in enumerate(groups) for path in group}
    table = {}
    for kind in ALTERED:
        found = [place.get(f"{kind}/{i}.jpg", -1) == place.get(f"original/{i}.png", -2) for i in range(n)]
        table[f"recall, {kind}"] = 100 * sum(found) / n
    pairs = [Path(a).stem == Path(b).stem for group in groups for a, b in combinations(group, 2)]
    return {**table, "precision of pairs": 100 * sum(pairs) / max(len(pairs), 1)}


def speed(folder: Path) -> None:
    """Print how long it takes to find the duplicates of a result."""
    start, cpu = time.perf_counter(), time.process_time()
    found = find_duplicates(SavedResult.load(folder))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{found.n_images:,} pictures: {seconds:.1f} s, processor time {cpu:.1f} s; {machine()}")
    exact = sum(group.kind == "exact" for group in found.groups)
    print(f"{exact} groups of equal files, {len(found.groups) - exact} of near duplicates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_quality = commands.add_parser("quality")
    of_quality.add_argument("folders", type=Path, nargs="+")
    of_quality.add_argument("--out", type=Path, required=True)
    of_quality.add_argument("--each", type=int, default=100)
    commands.add_parser("speed").add_argument("result", type=Path)
    options = parser.parse_args()
    if options.command == "quality":
        quality(options.folders, options.each, options.out)
    else:
        speed(options.result)


if __name__ == "__main__":
    main()
