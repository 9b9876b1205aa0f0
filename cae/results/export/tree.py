"""Bring a folder to what a plan says: whole files only, and nothing touched that an export did not write."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from cae.utils.checksums import json_hash, load_json
from cae.utils.files import drafting, write_json
from cae.utils.progress import Progress

Placing = Literal["copy", "hardlink", "symlink"]

# Path below the export, with slashes, to an image to be placed there or to what writes the file.
Plan: TypeAlias = Mapping[str, Path | Callable[[Path], None]]

FORMAT_VERSION = 1
MANIFEST = ".cae-export.json"


class ExportError(OSError):
    """An export cannot be made where it was asked for; the message says why and what to do."""


class PlaceError(ExportError):
    """The folder of an export cannot take it.

    Attributes:
        problem: the message without what to do, which the command line and the page of `cae open` say differently.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; choose another folder with --out")
        self.problem = problem


def carry_out(plan: Plan, out: Path, *, target: str, by: Placing, progress: Progress | None = None) -> int:
    """Write, place and remove files until `out` is what the plan says.

    A list of what belongs to the export lies in `out` before the first file does, so that an interrupted export is
    known as ours, and what it leaves behind can be removed later. Whatever is not in that list is left alone.

    Args:
        plan: the files of the export and what each holds.
        out: the folder; made if need be.
        target: name of the export's kind; a folder holds one kind of export.
        by: way to place images.
        progress: called with (done, total) files.

    Returns:
        How many files of an earlier export were removed.

    Raises:
        PlaceError: `out` is a file, or holds another export or files in the way.
        ExportError: an image is gone or cannot be placed, as by a link.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaceError(f"cannot write to {out}: {error.strerror}") from error
    ours = _read_manifest(out, target)
    # First: where case does not matter, a file that is renamed from `Cat` to `cat` would be its own obstacle.
    removed = sum(_remove(name, out) for name in ours if name not in plan)
    foreign = next((name for name in plan if name not in ours and os.path.lexists(out / name)), None)
    if foreign is not None:
        raise PlaceError(f"{out / foreign} is in the way and no part of an earlier export")
    _write_manifest(out, target, {*ours, *plan})
    with drafting(out) as draft:
        for done, (name, content) in enumerate(plan.items()):
            _bring(content, out / name, draft / "file", by)
            if progress:
                progress(done + 1, len(plan))
    _write_manifest(out, target, plan)
    return removed


def _bring(content: Path | Callable[[Path], None], place: Path, draft: Path, by: Placing) -> None:
    """One file to its place, by way of a draft on the same disk, unless it is there already."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, Path):
        content(draft)
    elif _is_placed(content, place, by):
        return
    else:
        _place(content.absolute(), draft, by)
    draft.replace(place)


def _is_placed(image: Path, place: Path, by: Placing) -> bool:
    if by == "symlink":
        return place.is_symlink() and place.readlink() == image.absolute()
    if place.is_symlink() or not place.exists():
        return False
    if by == "hardlink":
        return place.samefile(image)
    ours, original = place.stat(), image.stat()
    # `copy2` keeps the time of the last change, so another size or time means another content.
    same = (ours.st_size, ours.st_mtime_ns) == (original.st_size, original.st_mtime_ns)
    return same and not place.samefile(image)


def _place(image: Path, draft: Path, by: Placing) -> None:
    try:
        if by == "copy":
            shutil.copy2(image, draft)
        elif by == "hardlink":
            os.link(image.resolve(), draft)
        else:
            draft.symlink_to(image)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise ExportError(f"{image} was there a moment ago and is gone; run the export again") from error
        if error.errno == errno.ENOSPC:
            raise ExportError(f"no space left for {image}; make room and run the export again to go on") from error
        other = "" if by == "copy" else "; have the pictures copied (--by copy)"
        raise ExportError(f"cannot {by} {image}: {error.strerror or error}{other}") from error


def _remove(name: str, out: Path) -> bool:
    """Remove a file of ours, and the folders that this leaves empty."""
    place = out / name
    # A folder may have been replaced by a link, which leads to files of others.
    if not place.parent.resolve().is_relative_to(out.resolve()) or not os.path.lexists(place) or place.is_dir():
        return False
    place.unlink()
    for folder in place.relative_to(out).parents:
        try:
            (out / folder).rmdir() if folder.parts else None
        except OSError:  # not empty
            break
    return True


def _read_manifest(out: Path, target: str) -> set[str]:
    """Files of an earlier export to `out`; none for a fresh folder."""
    if not (out / MANIFEST).is_file():
        return set()
    try:
        manifest: dict[str, Any] = load_json(out / MANIFEST)
        version, kind, files = manifest["format_version"], manifest["target"], manifest["files"]
        if not all(isinstance(name, str) and _is_below(name) for name in files):
            raise ValueError("it names files outside of the export")
        newer = version > FORMAT_VERSION
        if not newer and manifest.get("sha256", json_hash(files)) != json_hash(files):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise PlaceError(f"{out / MANIFEST} is damaged ({error})") from error
    if newer:
        raise PlaceError(f"{out} holds an export of a newer version of cae (upgrade cae to go on with it)")
    if kind != target:
        raise PlaceError(f"{out} holds an export to {kind}, not to {target}")
    return set(files)


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def _write_manifest(out: Path, target: str, files: Iterable[str]) -> None:
    names = sorted(files)
    manifest = {"format_version": FORMAT_VERSION, "target": target, "files": names, "sha256": json_hash(names)}
    write_json(manifest, out / MANIFEST)
