"""Words for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, ends of lines, what turns the direction of writing, and bytes of a path that are no UTF-8."""


def counted(n: int, word: str) -> str:
    """A count with its noun: 1 file, 2,000 files."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def is_one_line(text: str) -> bool:
    r"""Whether a text can be shown as it is: in one line, and without orders to the terminal.

    Examples:
        >>> is_one_line("a b"), is_one_line("a\nb"), is_one_line("\x1b[2J")
        (True, False, False)
    """
    return _UNSHOWN.search(text) is None


def one_line(text: str) -> str:
    r"""A text that may hold anything, as a file's name, in one line and without orders to the terminal.

    Bytes that are no UTF-8 become the replacement character.

    Examples:
        >>> print(one_line("a\nb\x1b[2J.jpg"))
        a\nb\x1b[2J.jpg
    """
    return _UNSHOWN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return "\ufffd" if "\ud800" <= character <= "\udfff" else character.encode("unicode_escape").decode()


def few(texts: Sequence[str], most: int) -> str:
    """The first of a list in a line, and an ellipsis for the rest: `a.jpg, b.jpg, …`."""
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")
