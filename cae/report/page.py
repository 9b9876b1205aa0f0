"""The report's files.

REPORT/index.html       overview and groups; opens from disk, loads nothing from anywhere else
REPORT/report_files/    style, scripts, `data.js` with the columns of all images, `state.js`, which says that nobody
                        serves the page, the sheets of thumbnails, and what the next drawing can keep
                        (`cae.report.kept`); the page itself does not need the last
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from numpy.typing import NDArray
from torch import Tensor

from cae.data.listing import left_out_lines
from cae.report.data import ClusterSection, columns, describe_groups, fused, packed
from cae.report.kept import THUMBNAILS, ReportCache, fingerprint, stamps_of
from cae.report.map import lay_among, lay_out
from cae.report.thumbnails import COLUMNS, PER_SHEET, Thumbnails, thumbnail_side, write_sheets
from cae.results.compare import Comparison, compare
from cae.results.layout import ResultError
from cae.results.saved import SavedResult
from cae.results.writing import OutputError, check_writable
from cae.utils.files import committing, tidy
from cae.utils.progress import Reporter, silent
from cae.utils.words import counted

REPORT_FOLDER = "report"
"""Of a result."""
PAGE = "index.html"
PAGE_FILES = "report_files"
STATE_SCRIPT = "state.js"
"""Of the page's files: says that nobody serves the page. Who serves it answers with another, see `state_script`."""
_REASONS = 5
"""How many lines about files that were left out stand at the top of the page."""
_MOVES = 200
"""How many moves between groups the page lists."""
_GENERATOR = b'<meta name="generator" content="cae report">'
_HEAD = 4096
"""Bytes at the beginning of a page, which may have many megabytes, that tell whose it is."""


def write_report(
    result: SavedResult,
    out: Path,
    reporter: Reporter = silent,
    *,
    comparison: Comparison | None = None,
    kept: ReportCache | None = None,
    notes: Sequence[str] = (),
    z: Tensor | None = None,
) -> Path:
    """Write the report of a result.

    Args:
        result: may have lost images; they are shown as missing.
        out: the report's folder, made if need be; an earlier report in it is replaced.
        reporter: makes the progress callback of each step.
        comparison: comparison of another result with this one; the page says what lies elsewhere there.
        kept: the cache of the earlier report in `out`: thumbnails and places on the map that need not be made again.
        notes: lines to show at the top of the page, besides what is to be said of every result.
        z: what `cae.report.data.fused` gives for the result, if it is known.

    Returns:
        The page to open.

    Raises:
        OutputError: `out` cannot be written to, or holds a page of something else.
        ResultError: the result's model or embeddings are missing or damaged, or it knows of no images.

    Examples:
        >>> from cae import SavedResult
        >>> write_report(SavedResult.load("cae-result"), Path("page")).name
        'index.html'
    """
    if not result.has_images:
        raise ResultError(
            f"the result in {result.folder} was made from embeddings that name no pictures: there is nothing to show; "
            "a column `path` in a .parquet file of embeddings says where their pictures are"
        )
    check_writable(out)
    page = out / PAGE
    if page.exists() and not _is_report(page):
        raise OutputError(f"{page} is not a report of cae and would be overwritten; choose another folder with --out")
    result, unmatched = result.edited, result.unmatched_edits
    z = fused(result) if z is None else z
    groups, order = describe_groups(result, z)
    with committing(out) as draft:
        folder = draft / PAGE_FILES
        thumbnails, position, stamps = _draw(result, z.numpy(), order, folder, out / PAGE_FILES, kept, reporter)
        compared = None if comparison is None else comparison.a
        mark, side = fingerprint(result, len(order)), thumbnail_side(len(order))
        ReportCache(mark, side, position, thumbnails, stamps, result.root, compared).save(folder)
        size = thumbnails.size
        if result.root.is_dir():  # else nothing can be said of single images, as when a disk is not plugged in
            size = np.where([[path is None] for path in result.image_paths], 0, size)
        facts = columns(result, groups, order, comparison) | {
            "place": thumbnails.place[order],
            "size": size[order],
            "sheets": thumbnails.sheets,
            "position": np.round(position[order] * 65535).astype(np.int64),
        }
        data = {
            "count": len(order),
            "groups": [{"name": group.name, "first": group.first, "size": group.size} for group in groups],
            "movedFrom": [move.a.name for move in comparison.moves] if comparison else [],
            "sheet": {"columns": COLUMNS, "places": PER_SHEET, "folder": f"{PAGE_FILES}/{THUMBNAILS}/"},
            "roots": _roots(result.root, out),
            "links": _links([result.image_paths[row] for row in order], facts["path"]),
            "columns": {name: packed(column) for name, column in facts.items()},
            "tree": (tree := _tree(result, order)),
        }
        # ASCII, so that no character can end the line of the script.
        (folder / "data.js").write_text(f"const DATA = {json.dumps(data, separators=(',', ':'))};\n", encoding="ascii")
        (folder / STATE_SCRIPT).write_text(state_script(None), encoding="ascii")
        for static in files("cae.report").joinpath("static").iterdir():
            (folder / static.name).write_bytes(static.read_bytes())
        try:
            html = _render(
                result,
                groups,
                notes=[*notes, *_notes(result, unmatched, unshown=int((size[:, 0] == 0).sum()))],
                outliers=np.flatnonzero(facts["outlier"]).tolist(),
                compared=compared and _text(compared),
                comparison=comparison,
                tree=tree,
            )
        except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
            # What the page says besides its groups comes out of this file, which people may have changed.
            raise ResultError(
                f"{result.folder / 'run.json'} is damaged ({error!r}); run `cae cluster` again"
            ) from error
        (draft / PAGE).write_text(html, encoding="utf-8")
        drawn = {path.relative_to(draft) for path in folder.rglob("*")}
    for path in (out / PAGE_FILES).rglob("*"):
        if path.is_file() and path.relative_to(out) not in drawn:  # of an earlier report, with more images
            path.unlink()
    return page


def redraw_report(
    result_folder: Path, reporter: Reporter = silent, *, images: Path | None = None, z: Tensor | None = None
) -> Path | None:
    """Draw the page beside a result again, after an edit or an update: what has not changed is kept.

    Args:
        result_folder: folder that `cae cluster` wrote.
        reporter: makes the progress callback of each step.
        images: folder that the images lie in now, if they have moved.
        z: as in `write_report`.

    Returns:
        The page; None if there is none to draw again.

    Raises:
        OutputError, ResultError: as `write_report`.

    Examples:
        >>> redraw_report(Path("cae-result")) is None  # it has no page yet
        True
    """
    if not has_report(result_folder):
        return None
    out = result_folder / REPORT_FOLDER
    tidy(out)
    kept, comparison, notes = ReportCache.load(out / PAGE_FILES), None, []
    if kept is not None and images is None and kept.root.is_dir():
        images = kept.root
    result = SavedResult.load(result_folder, images=images)
    if kept is not None and kept.compared is not None:
        try:
            comparison = compare(SavedResult.load(kept.compared), result)
        except ValueError as error:
            notes = [f"No longer compared with another result: {error}"]
    return write_report(result, out, reporter, comparison=comparison, kept=kept, notes=notes, z=z)


def has_report(result_folder: Path) -> bool:
    """Whether there is a page beside a result that an edit or an update makes old.

    Examples:
        >>> has_report(Path("cae-result"))
        False
    """
    return _is_report(result_folder / REPORT_FOLDER / PAGE)


def _is_report(page: Path) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return _GENERATOR in file.read(_HEAD)


def state_script(state: dict[str, Any] | None) -> str:
    r"""The script that tells the page what may be done with it.

    Args:
        state: what `describe_edited` says, and more; None for a page that is read from disk.

    Examples:
        >>> state_script(None)
        'const STATE = null;\n'
    """
    # ASCII, so that no character can end the line of the script.
    return f"const STATE = {json.dumps(state, separators=(',', ':'))};\n"


def _draw(
    result: SavedResult,
    z: NDArray[np.float32],
    order: NDArray[np.int64],
    folder: Path,
    before: Path,
    kept: ReportCache | None,
    reporter: Reporter,
) -> tuple[Thumbnails, NDArray[np.float32], NDArray[np.int64]]:
    """Thumbnails into a new folder, the map, (N, 2), and the files' stamps: what is cached, and the rest made."""
    n, side, stamps = len(order), thumbnail_side(len(order)), stamps_of(result.image_paths)
    if kept is not None and not kept.fits(result):
        kept = None
    if kept is not None and kept.side == side:
        there, stamps = kept.still(stamps), kept.stamps_now(stamps)
        shutil.copytree(before / THUMBNAILS, folder / THUMBNAILS)
    else:
        there = Thumbnails.none(n)
        (folder / THUMBNAILS).mkdir(parents=True)
    thumbnails = write_sheets(
        result.image_paths, order, folder / THUMBNAILS, there, side, lambda: reporter("thumbnails")
    )
    if kept is None:
        position = lay_out(z, seed=result.fitted.config.seed, progress=reporter("map"))
    else:
        position = lay_among(z, kept.position)
    return thumbnails, position, stamps


def _tree(result: SavedResult, order: NDArray[np.int64]) -> dict[str, Any] | None:
    """The tree of groups as `levels.js` reads it, with the leaf of each image; None for a result without one."""
    fitted = result.fitted
    if fitted.hierarchy is None or "leaf" not in result.assignments.column_names:
        return None
    return {
        "cut": fitted.config.n_clusters,
        "fewest": fitted.hierarchy.levels[0],
        "most": fitted.hierarchy.levels[-1],
        "roots": fitted.hierarchy.roots,
        "splits": fitted.hierarchy.splits,
        "leaves": fitted.hierarchy.leaves,
        "names": [node.name for node in fitted.nodes],
        "glosses": [node.gloss for node in fitted.nodes],
        "leaf": packed(result.leaves.numpy()[order]),
    }


def _roots(root: Path, out: Path) -> list[str]:
    """URLs of the images' folder to try in turn: as far from the report as it is now, and where it is now."""
    absolute = root.absolute()
    urls = [absolute.as_uri() + "/"]
    try:
        relative = os.fsencode(os.path.relpath(absolute, out.absolute()).replace(os.sep, "/"))
    except ValueError:  # on another drive of Windows
        return urls
    return [quote(relative) + "/", *urls]


def _links(paths: Sequence[Path | None], shown: Sequence[str]) -> dict[int, str]:
    """URLs of the images whose place does not follow from the path that is shown: bytes lost, or another root."""
    return {
        number: path.absolute().as_uri()
        for number, (path, name) in enumerate(zip(paths, shown, strict=True))
        if path is not None and ("\ufffd" in name or PurePath(name).is_absolute())
    }


def _notes(result: SavedResult, unmatched_edits: Sequence[str], unshown: int) -> list[str]:
    """What somebody who looks at the page must know before."""
    notes = []
    if result.run["encoder"]["spec"] == "lite":
        notes.append("Made with the lite encoder, which is for trying things out offline. It is not CLIP.")
    if unshown:
        notes.append(
            f"Missing from {_text(result.root)}, or no longer readable: {unshown:,} of "
            f"{counted(len(result.assignments), 'picture')}. If they have moved, draw the report again with --images."
        )
    elif not result.root.is_dir():
        notes.append(
            f"The folder of the pictures is not there: {_text(result.root)}. The thumbnails are of the last drawing."
        )
    lines = left_out_lines(result.run.get("skipped", {}))
    notes += [f"In no group: {line}." for line in lines[:_REASONS]]
    if len(lines) > _REASONS:
        notes.append("More files are in no group; all are named under “How it was made”.")
    notes += [f"Edit not applied: {line}" for line in unmatched_edits]
    return notes


def _text(path: Path) -> str:
    """A path as text; bytes that are no UTF-8 show as the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def _render(result: SavedResult, groups: Sequence[ClusterSection], **more: Any) -> str:
    """The page; `more` is what its template shows besides, under these names."""
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
        position={group.id: i for i, group in enumerate(groups)},
        **more,
        counted=counted,
        MOVES=_MOVES,
        # Browsers disagree on whether 'self' holds for files; a nonce lets in what the page names and nothing else.
        nonce=secrets.token_urlsafe(),
    )
