"""The images of a folder, and what looks like one but is not used: counted and named, with what to do about it."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cae.data.images import ImageError, has_image_ending, is_image_by_content, shown_path
from cae.utils.words import counted, few, one_line

logger = logging.getLogger(__name__)

REPORT_MARK = "kept.safetensors"
"""The file by which a report's folder is recognised (`cae.report.kept`): its thumbnails are not listed."""

UNREAD = frozenset({
    ".ai", ".afphoto", ".cdr", ".clip", ".czi", ".dcm", ".dicom", ".djvu", ".exr", ".fig", ".hdr", ".jxl", ".jxr",
    ".kra", ".lif", ".nd2", ".oib", ".ora", ".psb", ".sketch", ".svg", ".svgz", ".vsi", ".wdp", ".xcf",
})  # fmt: skip
"""Endings of images that nothing here reads."""

_SHOWN = 3
"""How many of the files that are left out for one reason are named in a line."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        images: files that will be read as images, in a fixed order.
        left_out: files that look like an image or may hold some, but are not used, with the reason and the remedy.
    """

    images: list[Path]
    left_out: dict[Path, str]

    def lines(self, root: str | os.PathLike[str]) -> list[str]:
        """What is left out, for people; see `left_out_lines`."""
        return left_out_lines({shown_path(path, Path(root)): reason for path, reason in self.left_out.items()})


def list_folder(root: str | os.PathLike[str]) -> Listing:
    """All files below `root` that look like images, and those of them that cannot be used.

    A file looks like an image when its ending is one of an image or of a camera's raw file, or, with another ending
    or none, when its first bytes are those of a common format. Hidden files and folders are skipped, as are the
    thumbnails of reports: a result may lie among its images.

    Links are followed, inside the folder and out of it, each folder and each linked file once: so loops end. Links to
    a folder that holds `root` are not; they would bring in everything around it.

    Args:
        root: the folder, itself perhaps a link.

    Raises:
        ImageError: no such folder, or a file in its place.

    Examples:
        >>> listing = list_folder("photos")
        >>> len(listing.images), listing.left_out
        (30, {})
    """
    root = Path(root)
    if not root.is_dir():
        if root.exists():
            raise ImageError(f"not a folder but a file: {root}; give the folder that holds the pictures")
        raise ImageError(f"no such folder: {root}")
    images: list[Path] = []
    left_out: dict[Path, str] = {}
    links: list[Path] = []
    for entry in _visible_files(root, left_out):
        path = Path(entry.path)
        if entry.is_symlink() and os.path.exists(path):  # noqa: PTH110 (`Path.exists` raises for some broken links)
            links.append(path)
        elif reason := _why_left_out(path, is_special=not (entry.is_symlink() or entry.is_file())):
            left_out[path] = reason
        elif looks_like_image(path):
            images.append(path)
    images += _linked_once(links, images, left_out)
    return Listing(sorted(images), dict(sorted(left_out.items())))


def list_images(root: str | os.PathLike[str]) -> list[Path]:
    """The images of `list_folder`; what it leaves out is logged as a warning.

    Raises:
        ImageError: no such folder, a file in its place, or no image in it.

    Examples:
        >>> [path.name for path in list_images("photos/red")[:3]]
        ['0.png', '1.png', '2.png']
    """
    listing = list_folder(root)
    for line in listing.lines(root):
        logger.warning("%s", one_line(line))
    check_not_empty(root, listing)
    return listing.images


def check_not_empty(root: str | os.PathLike[str], listing: Listing) -> None:
    """Refuse a folder without images.

    Raises:
        ImageError: says also what was left out.
    """
    if listing.images:
        return
    raise ImageError(
        f"no pictures in {root}: looked through all sub-folders for files that Pillow reads (.jpg, .png, …)"
        + "".join(f"; {line}" for line in listing.lines(root))
    )


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason and ending that images were left out for, the commonest first.

    Args:
        left_out: reasons by path, both for people.

    >>> left_out_lines({"a.svg": "export it as PNG", "b/c.svg": "export it as PNG", "d.jpg": "it is empty"})
    ['skipped 2 .svg files (a.svg, b/c.svg): export it as PNG', 'skipped d.jpg: it is empty']
    """
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for path, reason in left_out.items():
        groups[os.path.splitext(path)[1], reason].append(path)  # noqa: PTH122 (text, which need not be a path)
    lines = []
    for (ending, reason), paths in sorted(groups.items(), key=lambda group: -len(group[1])):
        kind = f"{ending} file".strip()
        what = paths[0] if len(paths) == 1 else f"{counted(len(paths), kind)} ({few(paths, _SHOWN)})"
        lines.append(f"skipped {what}: {reason}")
    return lines


def looks_like_image(path: Path) -> bool:
    """Whether a file is named like an image, or begins like one. Pipes are not opened: they may block forever."""
    # `Path.is_file` raises for some broken links.
    return has_image_ending(path) or (os.path.isfile(path) and is_image_by_content(path))  # noqa: PTH113


def _why_left_out(path: Path, *, is_special: bool) -> str | None:
    """The reason, for what looks like an image but will not be opened."""
    if path.suffix.lower() in UNREAD:
        return f"cae reads no {path.suffix} files; export them as PNG, JPEG or TIFF"
    if is_special and has_image_ending(path):
        return "a pipe or a device, not a file"
    return None


def _visible_files(root: Path, left_out: dict[Path, str]) -> Iterator[os.DirEntry[str]]:
    """Files, pipes, devices, links to them and broken links: folder by folder, real ones before linked ones.

    Args:
        root: the folder to begin in.
        left_out: takes the folders that are not entered, with the reason.
    """
    seen = set[tuple[int, int]]()
    above = {_identity(folder) for folder in root.resolve().parents}
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            identity = _identity(folder)
            if identity in seen:
                continue
            if identity in above:
                left_out[folder] = "a link to a folder around this one, which is not followed; link to what is needed"
                continue
            seen.add(identity)
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            left_out[folder] = f"a folder that cannot be listed ({error.strerror or error}); see to its permissions"
            continue
        is_report = any(entry.name == REPORT_MARK for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not _is_folder(entry):
                yield entry
            elif not is_report:
                (linked if entry.is_symlink() else waiting).append(Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one that may not be looked at
        return False


def _identity(path: Path) -> tuple[int, int]:
    """An id of a file or folder that is the same under all its names."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _linked_once(links: Iterable[Path], images: Iterable[Path], left_out: dict[Path, str]) -> Iterator[Path]:
    """The links to images that bring in a file which no other name does."""
    links = sorted(links)
    if not links:  # as nearly always: then no file need be looked at
        return
    seen = {_identity(path) for path in images if os.path.exists(path)}  # noqa: PTH110 (as above)
    for link in links:
        if reason := _why_left_out(link, is_special=not link.is_file()):
            left_out[link] = reason
        elif looks_like_image(link) and (identity := _identity(link)) not in seen:
            seen.add(identity)
            yield link
