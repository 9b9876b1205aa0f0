"""Names for files and folders that Linux, macOS and Windows all take."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from pathvalidate import sanitize_filename

MAX_BYTES = 100
"""Windows counts 260 characters for a whole path; file systems take 255 bytes a name."""


def is_utf_8(text: str) -> bool:
    """Whether a text, or a path as Python has it, can be written as UTF-8: its bytes may be of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def safe_name(text: str) -> str:
    """A text as a name for a file or folder: no separator, control or reserved character or word, not hidden.

    A colon between words becomes a dash: `mixed - dog, cat`.

    An ending such as `.jpg` survives the shortening to `MAX_BYTES`.
    """
    text = os.fsencode(text).decode("utf-8", "replace")  # a file name may be any bytes
    text = unicodedata.normalize("NFC", text).strip().lstrip(".").replace(": ", " - ")
    suffix = PurePosixPath(text).suffix
    if not 1 < len(suffix.encode()) <= 10 or " " in suffix:
        suffix = ""
    stem = text[: len(text) - len(suffix)]
    room = MAX_BYTES - len(suffix.encode())
    stem = sanitize_filename(stem, platform="universal", replacement_text="_", max_len=room) or "unnamed"
    return str(sanitize_filename(stem + suffix, platform="universal", replacement_text="_"))


def distinct_names(texts: Iterable[str], *, by_stem: bool = False) -> list[str]:
    """A safe name for each text, none twice, not even in another case: `cat`, `Cat (2)`.

    Args:
        texts: wanted names, in the order in which they may keep them.
        by_stem: no two may differ in their ending alone.
    """

    def key(name: str) -> str:
        return (PurePosixPath(name).stem if by_stem else name).casefold()

    taken: dict[str, int] = {}  # the number to go on with where many want the same name
    names = []
    for text in texts:
        path = PurePosixPath(safe_name(text))
        name, wanted = path.name, key(path.name)
        while key(name) in taken:
            taken[wanted] += 1
            name = f"{path.stem} ({taken[wanted]}){path.suffix}"
        taken[key(name)] = 1
        names.append(name)
    return names
