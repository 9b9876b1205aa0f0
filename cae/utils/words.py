"""Words for people."""

from __future__ import annotations

from collections.abc import Sequence


def counted(n: int, word: str) -> str:
    """A count with its noun: 1 file, 2,000 files."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def few(texts: Sequence[str], most: int) -> str:
    """The first of a list in a line, and an ellipsis for the rest: `a.jpg, b.jpg, …`."""
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")
