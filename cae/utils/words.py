"""Words for people."""

from __future__ import annotations


def counted(n: int, word: str) -> str:
    """A count with its noun: 1 file, 2,000 files."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
