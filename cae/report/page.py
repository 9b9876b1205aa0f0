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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from numpy.typing import NDArray
from torch import Tensor

from cae.data.listing import left_out_lines
from cae.report.data import PAGE_FILES, ClusterSection, columns, describe_groups, fused, page_data, tree_of
from cae.report.kept import THUMBNAILS, ReportCache, fingerprint, stamps_of
from cae.report.map import lay_among, lay_out
from cae.report.thumbnails import Thumbnails, thumbnail_side, write_sheets
from cae.results.compare import Comparison, compare
from cae.results.layout import RUN, ResultError, damaged
from cae.results.saved import SavedResult
from cae.results.writing import OutputError, check_writable
from cae.utils.files import committing, tidy
from cae.utils.progress import Reporter, silent
from cae.utils.words import counted

REPORT_FOLDER = "report"
"""Of a result."""
PAGE = "index.html"
STATE_SCRIPT = "state.js"
"""Of the page's files: says that nobody serves the page. Who serves it answers with another, see `state_script`."""
_REASONS = 5
"""Most lines about files that were left out at the top of the page."""
_MOVES = 200
"""How many moves between groups the page lists."""
_GENERATOR = b'<meta name="generator" content="cae report">'
_HEAD = 4096
"""Bytes at the beginning of a page that are searched for its generator; a page may have many megabytes."""


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
    _check_drawable(result, out)
    result, unmatched = result.edited, result.unmatched_edits
    z = fused(result) if z is None else z
    groups, order = describe_groups(result, z)
    with committing(out) as draft:
        folder = draft / PAGE_FILES
        drawing = _draw(result, z.numpy(), order, folder, out / PAGE_FILES, kept, reporter)
        compared = None if comparison is None else comparison.a
        mark, side = fingerprint(result, len(order)), thumbnail_side(len(order))
        ReportCache(mark, side, drawing.position, drawing.thumbnails, drawing.stamps, result.root, compared).save(
            folder
        )
        sizes = _sizes(result, drawing.thumbnails)
        facts = columns(result, groups, order, comparison) | {
            "place": drawing.thumbnails.place[order],
            "size": sizes[order],
            "sheets": drawing.thumbnails.sheets,
            "position": np.round(drawing.position[order] * 65535).astype(np.int64),
        }
        tree = tree_of(result, order)
        _write_scripts(folder, page_data(result, groups, order, facts, tree, comparison, out))
        html = _render(
            result,
            groups,
            notes,
            unmatched,
            unshown=int((sizes[:, 0] == 0).sum()),
            outliers=np.flatnonzero(facts["outlier"]).tolist(),
            compared=compared and _text(compared),
            comparison=comparison,
            tree=tree,
        )
        (draft / PAGE).write_text(html, encoding="utf-8", errors="replace")  # a path may hold any bytes
        drawn = {path.relative_to(draft) for path in folder.rglob("*")}
    for path in (out / PAGE_FILES).rglob("*"):
        if path.is_file() and path.relative_to(out) not in drawn:  # of an earlier report, with more images
            path.unlink()
    return out / PAGE


def _check_drawable(result: SavedResult, out: Path) -> None:
    if not result.has_images:
        raise ResultError(
            f"the result in {result.folder} was made from embeddings that name no pictures: there is nothing to show; "
            "a column `path` in a .parquet file of embeddings says where their pictures are"
        )
    check_writable(out)
    page = out / PAGE
    if page.exists() and not _is_report(page):
        raise OutputError(
            f"{page} is not a report of cae and would be overwritten; move it away, or choose another folder with --out"
        )


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
    """Whether there is a page beside a result, which an edit or an update would put out of date.

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


class _Drawing(NamedTuple):
    """What is drawn of the N images, by row of the assignments.

    Attributes:
        thumbnails: their thumbnails, on sheets.
        position: (N, 2) float32 places on the map.
        stamps: size and time of their files, see `stamps_of`.
    """

    thumbnails: Thumbnails
    position: NDArray[np.float32]
    stamps: NDArray[np.int64]


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
) -> _Drawing:
    """Make the thumbnails, in a new folder, and the map; what is cached is kept."""
    n, side, stamps = len(order), thumbnail_side(len(order)), stamps_of(result.image_paths)
    if kept is not None and not kept.fits(result):
        kept = None
    there = Thumbnails.none(n)
    (folder / THUMBNAILS).mkdir(parents=True)
    if kept is not None and kept.side == side:
        there, stamps = kept.still(stamps), kept.stamps_now(stamps)
        for sheet in (before / THUMBNAILS).glob("*"):  # without a thumbnail there is no such folder
            shutil.copy2(sheet, folder / THUMBNAILS)
    thumbnails = write_sheets(
        result.image_paths, order, folder / THUMBNAILS, there, side, lambda: reporter("thumbnails")
    )
    if kept is None:
        position = lay_out(z, seed=result.fitted.config.seed, progress=reporter("map"))
    else:
        position = lay_among(z, kept.position)
    return _Drawing(thumbnails, position, stamps)


def _sizes(result: SavedResult, thumbnails: Thumbnails) -> NDArray[np.uint8]:
    """(N, 2) sizes of the thumbnails that are shown; 0 for an image that is missing or cannot be read."""
    if not result.root.is_dir():  # nothing can be said of single images, as when a disk is not plugged in
        return thumbnails.size
    return np.where([[path is None] for path in result.image_paths], 0, thumbnails.size)


def _write_scripts(folder: Path, data: dict[str, Any]) -> None:
    """Write `data.js`, and what does not change from page to page."""
    # ASCII, so that no character can end the line of the script.
    (folder / "data.js").write_text(f"const DATA = {json.dumps(data, separators=(',', ':'))};\n", encoding="ascii")
    (folder / STATE_SCRIPT).write_text(state_script(None), encoding="ascii")
    for static in files("cae.report").joinpath("static").iterdir():
        (folder / static.name).write_bytes(static.read_bytes())


def _notes(result: SavedResult, unmatched_edits: Sequence[str], unshown: int) -> list[str]:
    """Notes at the top of the page: what to know before the groups."""
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
    notes += [f"Edit not applied: {line}" for line in unmatched_edits]
    return notes


def _text(path: Path) -> str:
    """A path as text; bytes that are no UTF-8 show as the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def _render(
    result: SavedResult,
    groups: Sequence[ClusterSection],
    notes: Sequence[str],
    unmatched_edits: Sequence[str],
    unshown: int,
    **more: Any,
) -> str:
    """The page; `more` is what its template shows besides, under these names.

    Raises:
        ResultError: `run.json` is damaged. What the page says besides its groups comes out of it.
    """
    environment = Environment(
        loader=PackageLoader("cae.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("report.html")
    try:
        return template.render(
            title=_text(Path(result.root.absolute().name)),
            run=result.run,
            n=len(result.assignments),
            groups=groups,
            position={group.id: i for i, group in enumerate(groups)},
            notes=[*notes, *_notes(result, unmatched_edits, unshown)],
            left_out=left_out_lines(result.run.get("skipped", {})),
            **more,
            counted=counted,
            MOVES=_MOVES,
            REASONS=_REASONS,
            # Browsers disagree on whether 'self' holds for files; a nonce lets in what the page names and nothing else.
            nonce=secrets.token_urlsafe(),
        )
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(result.folder, RUN, repr(error)) from error
