"""`edits.json`, beside a result: the list of edits, which other programs may write, too.

    {"format_version": 1,
     "edits": [{"edit": "rename", "cluster": C, "name": "boats"},
               {"edit": "merge", "clusters": [C, C, …], "name": "boats"},
               {"edit": "split", "cluster": C, "parts": [C, C, …]},
               {"edit": "pin", "cluster": C},
               {"edit": "move", "cluster": C, "pictures": ["SHA-256", …]}],
     "undone": []}

where C is `{"name": "harbor", "pictures": ["SHA-256", …]}`: a cluster's name when the edit was made, which messages
show, and its anchors. For a part, `name` is what it will be called; for a pin, `pictures` are all that stay.
`undone`, which may be left out, holds edits that were taken back and can be made again, the next one first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from cae.results.edits import Anchors, Edit, EditError, Merge, Move, Pin, Rename, Split
from cae.utils.checksums import load_json
from cae.utils.files import replacing

FORMAT_VERSION = 1
EDITS_FILE = "edits.json"
_KINDS: dict[str, type[Edit]] = {"rename": Rename, "merge": Merge, "split": Split, "pin": Pin, "move": Move}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class History(NamedTuple):
    """The edits of a result, and those that were taken back.

    Attributes:
        edits: in the order in which they apply.
        undone: what can be made again, the next one first.
    """

    edits: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()

    def add(self, edits: Iterable[Edit]) -> History:
        """With more edits; what was taken back cannot be made again."""
        return History((*self.edits, *edits))

    def undo(self) -> History:
        """With the last edit taken back.

        Raises:
            EditError: there is none.
        """
        if not self.edits:
            raise EditError("there are no edits, and so nothing to take back")
        return History(self.edits[:-1], (self.edits[-1], *self.undone))

    def redo(self) -> History:
        """With the edit made again that was taken back last.

        Raises:
            EditError: none was, or another edit was made since.
        """
        if not self.undone:
            raise EditError("no edit was taken back last, and so there is none to make again")
        return History((*self.edits, self.undone[0]), self.undone[1:])


def load_edits(folder: Path) -> tuple[Edit, ...]:
    """The edits beside a result; none without the file.

    Raises:
        EditError: damaged, or from a newer version.
    """
    return load_history(folder).edits


def load_history(folder: Path) -> History:
    """The edits beside a result with those that were taken back; none without the file.

    Raises:
        EditError: damaged, or from a newer version.
    """
    path = folder / EDITS_FILE
    if not path.exists():
        return History()
    try:
        document = load_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("format_version"), int):
            raise ValueError("it has no format_version")
        if document["format_version"] > FORMAT_VERSION:
            raise EditError(f"{path} has format {document['format_version']}, newer than this cae reads; upgrade cae")
        return History(
            *(tuple(map(_read_edit, records)) for records in (document["edits"], document.get("undone", [])))
        )
    except EditError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise EditError(f"{path} cannot be read ({error!r}); repair it, or remove it to go without edits") from error


def save_edits(edits: Sequence[Edit], folder: Path, undone: Sequence[Edit] = ()) -> None:
    """Write the edits beside a result, whole or not at all; without `undone`, nothing can be made again."""
    # A line an edit: people can read it, and thousands are written fast enough to be so after every click.
    listed = [",\n  ".join(map(_line, some)) for some in (edits, undone)]
    with replacing(folder / EDITS_FILE) as target:
        target.write_text(
            f'{{"format_version": {FORMAT_VERSION},\n "edits": [\n  {listed[0]}\n ],\n "undone": [{listed[1]}]}}\n',
            encoding="utf-8",
        )


def _line(edit: Edit) -> str:
    return json.dumps({"edit": _NAMES[type(edit)], **vars(edit)}, default=vars, ensure_ascii=False)


def _read_edit(record: Mapping[str, Any]) -> Edit:
    """An edit out of JSON, every field checked.

    Raises:
        ValueError, KeyError: it is not one.
    """
    if record["edit"] not in _KINDS:
        raise ValueError(f"unknown edit {record['edit']!r}")
    kind = _KINDS[record["edit"]]
    return kind(**{field.name: _READ[field.name](record[field.name]) for field in fields(kind)})


def _read_name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a name must be a text, got {value!r}")
    value.encode()  # raises for halves of characters, which no other file could hold
    return value


def _read_hashes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(sha256, str) for sha256 in value):
        raise ValueError("pictures must be a list of at least one hash")
    return tuple(value)


def _read_anchors(value: Any) -> Anchors:
    return Anchors(_read_name(value["name"]), _read_hashes(value["pictures"]))


def _read_several(value: Any) -> tuple[Anchors, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError("clusters and parts must be lists of at least two")
    return tuple(_read_anchors(cluster) for cluster in value)


_READ: dict[str, Callable[[Any], Any]] = {
    "cluster": _read_anchors,
    "clusters": _read_several,
    "parts": _read_several,
    "name": _read_name,
    "pictures": _read_hashes,
}
