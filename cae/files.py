"""Files that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
