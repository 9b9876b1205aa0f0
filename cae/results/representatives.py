"""Which images of a cluster stand for it, and which of several equal files is the original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

N_REPRESENTATIVES = 9
"""Images that stand for a cluster."""


def original_first(path: str) -> tuple[int, str]:
    """A key that sorts the name of an original before those of its copies, which are longer: `copy of x.jpg`.

    Examples:
        >>> sorted(["Copy of x.jpg", "x (1).jpg", "x.jpg"], key=original_first)
        ['x.jpg', 'x (1).jpg', 'Copy of x.jpg']
    """
    return len(path), path


def representatives(
    rows: Iterable[int], paths: Sequence[str], hashes: Sequence[str | None], n: int = N_REPRESENTATIVES
) -> list[int]:
    """The first n images of a cluster, each once: of files with the same bytes the original stands for all.

    Args:
        rows: rows of the cluster, the most typical first.
        paths: path of each image of the result.
        hashes: hash of each image's bytes; None where it is not known, which is no copy of anything.
        n: images to choose.

    Examples:
        >>> representatives([2, 0, 1], ["copy of x.jpg", "y.jpg", "x.jpg"], ["a", "b", "a"])
        [2, 1]
        >>> representatives([0, 2, 1], ["copy of x.jpg", "y.jpg", "x.jpg"], ["a", "b", "a"], n=1)
        [2]
    """
    chosen: dict[str | int, int] = {}
    for row in rows:
        image = hashes[row] or row
        if image in chosen:
            chosen[image] = min(chosen[image], row, key=lambda row: original_first(paths[row]))
        elif len(chosen) < n:
            chosen[image] = row
    return list(chosen.values())
