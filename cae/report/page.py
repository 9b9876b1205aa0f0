"""The report's files.

REPORT/index.html       overview and groups; opens from disk, loads nothing from anywhere else
REPORT/report_files/    style, scripts, `data.js` with the columns of all pictures, and the sheets of thumbnails
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from cae.files import replacing
from cae.folder import Reporter
from cae.report.data import Group, columns, describe_groups, fused
from cae.report.map import lay_out
from cae.report.thumbnails import COLUMNS, PER_SHEET, write_sheets
from cae.results import OutputError, ResultError, SavedResult, check_writable

REPORT_FOLDER = "report"
"""Of a result."""
PAGE = "index.html"
_FILES = "report_files"
_TYPES = ("uint8", "int8", "uint16", "int16", "int32")
_GENERATOR = '<meta name="generator" content="cae report">'


def write_report(result: SavedResult, out: Path, reporter: Reporter) -> Path:
    """Write the report of a result.

    Args:
        result: may have lost pictures; they are shown as missing.
        out: the report's folder, made if need be; an earlier report in it is replaced.
        reporter: hears of progress.

    Returns:
        The page to open.

    Raises:
        OutputError: `out` cannot be written to, or holds a page of something else.
        ResultError: the result's model or embeddings are missing or damaged.
    """
    check_writable(out)
    result, unmatched = result.edited, result.unmatched_edits
    page = out / PAGE
    if page.exists() and _GENERATOR not in page.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{page} is not a report of cae and would be overwritten; choose another folder with --out")
    z = fused(result)
    groups, order = describe_groups(result, z)
    facts = columns(result, groups, order)
    pictures = [result.pictures[row] for row in order]
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        folder = Path(temporary, _FILES)
        (folder / "thumbnails").mkdir(parents=True)
        sizes = write_sheets(pictures, folder / "thumbnails", reporter("thumbnails"))
        flat = lay_out(z.numpy(), seed=result.fitted.config.seed, progress=reporter("map"))[order]
        facts |= {"size": sizes, "position": np.round(flat * 65535).astype(np.int64)}
        data = {
            "count": len(order),
            "groups": [{"name": group.name, "first": group.first, "size": group.size} for group in groups],
            "sheet": {"columns": COLUMNS, "places": PER_SHEET, "folder": f"{_FILES}/thumbnails/"},
            "roots": _roots(result.root, out),
            "links": _links(pictures, facts["path"]),
            "columns": {name: _packed(column) for name, column in facts.items()},
        }
        # ASCII, so that no character can end the line of the script.
        (folder / "data.js").write_text(f"const DATA = {json.dumps(data, separators=(',', ':'))};\n", encoding="ascii")
        for static in files("cae.report").joinpath("static").iterdir():
            (folder / static.name).write_bytes(static.read_bytes())
        try:
            html = _render(result, groups, _notes(result, unmatched, unshown=int((sizes[:, 0] == 0).sum())))
        except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
            # What the page says besides its groups comes out of this file, which people may have changed.
            raise ResultError(
                f"{result.folder / 'run.json'} is damaged ({error!r}); run `cae cluster` again"
            ) from error
        shutil.rmtree(out / _FILES, ignore_errors=True)
        folder.replace(out / _FILES)
    with replacing(page) as (target,):
        target.write_text(html, encoding="utf-8")
    return page


def _roots(root: Path, out: Path) -> list[str]:
    """URLs of the pictures' folder to try in turn: as far from the report as it is now, and where it is now."""
    absolute = root.absolute()
    urls = [absolute.as_uri() + "/"]
    try:
        relative = os.fsencode(os.path.relpath(absolute, out.absolute()).replace(os.sep, "/"))
    except ValueError:  # on another drive of Windows
        return urls
    return [quote(relative) + "/", *urls]


def _links(pictures: Sequence[Path | None], shown: Sequence[str]) -> dict[int, str]:
    """URLs of the pictures whose place does not follow from the path that is shown: bytes lost, or another root."""
    return {
        number: picture.absolute().as_uri()
        for number, (picture, path) in enumerate(zip(pictures, shown, strict=True))
        if picture is not None and ("\ufffd" in path or PurePath(path).is_absolute())
    }


def _packed(column: Any) -> Any:
    """A list of strings as it is; an array as the smallest type that holds it, little-endian in base64."""
    if isinstance(column, list):
        return column
    low, high = column.min(initial=0), column.max(initial=0)
    smallest = next(name for name in _TYPES if np.iinfo(name).min <= low and high <= np.iinfo(name).max)
    packed = np.ascontiguousarray(column, dtype=np.dtype(smallest).newbyteorder("<"))
    return {"type": smallest, "base64": base64.b64encode(packed.tobytes()).decode("ascii")}


def _notes(result: SavedResult, unmatched_edits: Sequence[str], unshown: int) -> list[str]:
    """What somebody who looks at the page must know before."""
    notes = []
    if result.run["encoder"]["spec"] == "lite":
        notes.append("Made with the lite encoder, which is for trying things out offline. It is not CLIP.")
    if unshown:
        notes.append(
            f"{unshown:,} of {len(result.assignments):,} pictures are missing from {_text(result.root)} or cannot be "
            "read any more. If they have moved, draw the report again with --images."
        )
    notes += [f"Edit not applied: {line}" for line in unmatched_edits]
    return notes


def _text(path: Path) -> str:
    """A path as text; bytes that are no UTF-8 show as the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def _render(result: SavedResult, groups: Sequence[Group], notes: Sequence[str]) -> str:
    environment = Environment(
        loader=PackageLoader("cae.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html").render(
        title=_text(Path(result.root.absolute().name)),
        run=result.run,
        n=len(result.assignments),
        groups=groups,
        notes=notes,
        # Browsers disagree on whether 'self' holds for files; a nonce lets in what the page names and nothing else.
        nonce=secrets.token_urlsafe(),
    )
