"""Words for people."""

from __future__ import annotations


def counted(n: int, word: str) -> str:
    """So many of something: 1 file, 2,000 files."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
