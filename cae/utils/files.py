"""Files that are written whole or not at all, several of them together if need be, and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_DRAFT = ".writing-"
"""Prefix of the names of draft folders. The host and the process follow, by which leftovers are recognised."""

_COMMIT = ".committed"
"""A finished draft whose files are on their way to their places."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path from the root, without `.` and `..`, and with the links in it as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (`Path.resolve` would follow the links)


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files that are not finished; it is gone afterwards, with what is still in it.

    `folder` is made if need be, and tidied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_DRAFT}{_HERE}.{os.getpid()}.") as draft:
        yield Path(draft)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place once the block ends without an error.

    The target's folder is made if need be. On an error, or a kill, the target stays as it was.
    """
    with drafting(target.parent) as draft:
        yield draft / target.name
        (draft / target.name).replace(target)


@contextmanager
def committing(folder: Path) -> Iterator[Path]:
    """A draft of `folder` whose files, in any depth, take their places together once the block ends without an error.

    On an error, or a kill within the block, `folder` stays as it was. A kill after it leaves the finished draft
    behind, and the next `tidy`, by any process, moves the rest of it into place. A reader that calls `tidy` first
    never sees files of two drafts mixed.
    """
    with drafting(folder) as draft:
        whole = draft / "whole"
        whole.mkdir()
        yield whole
        while True:
            _finish_commit(folder)
            try:
                whole.rename(folder / _COMMIT)
                break
            except OSError as error:
                # Another process has committed in between.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    _finish_commit(folder)


def tidy(folder: Path) -> None:
    """Finish a commit to `folder` that was interrupted, and remove drafts that killed processes have left in it.

    For all who read what `committing` and `replacing` write; processes may do so at once.
    """
    _finish_commit(folder)
    for leftover in folder.glob(f"{_DRAFT}*"):
        if _is_litter(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def _finish_commit(folder: Path) -> None:
    commit = folder / _COMMIT
    if not commit.is_dir():
        return
    _refuse_link(commit)
    # Another process may do the same at once: `os.walk` skips folders that are gone by the time it looks.
    for place, folders, names in os.walk(commit, topdown=False):
        target = folder / Path(place).relative_to(commit)
        for name in folders:
            _refuse_link(Path(place, name))
        for name in names:
            _make_folders(target, folder)
            with suppress(FileNotFoundError):
                Path(place, name).replace(target / name)
        # Only what is empty: the other process may have begun the next commit.
        _remove_if_empty(Path(place))


def _make_folders(target: Path, folder: Path) -> None:
    """Make the folders on the way from `folder` down to `target`.

    Raises:
        OSError: one of them is a link: a folder that a stranger made could write to any other.
    """
    for above in (target, *target.parents):
        if above == folder:
            break
        _refuse_link(above)
    target.mkdir(parents=True, exist_ok=True)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise OSError(f"{path} is a link, and nothing is written by way of it: remove the link")


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def hold(path: Path, patience: float = -1) -> FileLock:
    """A lock on the file `path`, held by this process; waits for another that holds it, and says so.

    Args:
        path: the file, made if need be.
        patience: most seconds to wait; 0 for not at all, -1 for as long as it takes.

    Raises:
        TimeoutError: another process holds it still.
        OSError: the file cannot be made, or is a link, as of a folder that a stranger made: locking empties a file.
    """
    _refuse_link(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if patience == 0:
            raise
        logger.warning("another process is at work in %s: waiting for it", path.parent)
        lock.acquire(timeout=patience)
    return lock


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold a lock for the time of a block."""
    lock = hold(path)
    try:
        yield
    finally:
        lock.release()


_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_litter(name: str) -> bool:
    """Whether a draft's process is gone: one of this host, and not running any more."""
    host, _, rest = name.removeprefix(_DRAFT).partition(".")
    process, _, _ = rest.partition(".")
    if host != _HERE or not re.fullmatch("[0-9]{1,9}", process) or os.name != "posix":
        return False
    try:
        os.kill(int(process), 0)  # signal 0 is not sent: it only asks whether the process exists
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def dump_json(value: Any, path: Path) -> None:
    """Write JSON that people can read, too; inside `replacing` or `committing` where a file must be whole."""
    # Bytes of a path that are no UTF-8 are halves of characters in Python, which JSON has as it escapes them.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as target:
        dump_json(value, target)
