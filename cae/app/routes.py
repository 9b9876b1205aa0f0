"""What may be asked, and the function of a result that answers.

GET  /                        the page, and its files below /report_files/
GET  /report_files/state.js   what the page shows that edits change
GET  /pictures/ROW            an original
GET  /api/state               the same as state.js, as JSON
POST /api/edits               {revision, edit, …}: rename, merge, split, pin, move, undo or redo; answers with the state
POST /api/split               {group, into}: what a split would make
POST /api/search              {text} or {like}
POST /api/duplicates          {}
POST /api/duplicates/list     {}: writes the list to a file
POST /api/exports             {to, name, by, nested, without_duplicates, pictures}

Pictures are meant by their row of the assignments, groups by their id. What cannot be done is answered with a status
from 400 on and `{error}`; a change that was decided on at an older revision with 409.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cae.app.fields import BadRequestError, Fields
from cae.app.opened import OpenResult
from cae.data.images import shown_path
from cae.report.data import PAGE_FILES
from cae.report.page import STATE_SCRIPT, state_script
from cae.results import make_edits
from cae.results.editor import Editor, StaleError
from cae.results.export import TARGETS, Placing

_PREVIEWED = 12
"""Pictures of each part that a split would make."""


def create_app(opened: OpenResult) -> Starlette:
    """The application, without its guard (`cae.app.guard`)."""

    def page(_request: Request) -> Response:
        return FileResponse(opened.page())

    def state_js(_request: Request) -> Response:
        return Response(state_script(opened.state()), media_type="text/javascript")

    def state(_request: Request) -> Response:
        return _json(opened.state())

    def picture(request: Request) -> Response:
        row = request.path_params["row"]
        place = opened.picture(int(row)) if row.isascii() and row.isdecimal() and len(row) < 10 else None
        if place is None:
            return _json({"error": "there is no such picture any more"}, 404)
        kind, _ = mimetypes.guess_type(place.name)
        is_image = kind is not None and kind.startswith("image/") and "svg" not in kind
        return FileResponse(place, media_type=kind if is_image else "application/octet-stream")

    def post(path: str, answer: Callable[[OpenResult, Fields], dict[str, Any]]) -> Route:
        async def endpoint(request: Request) -> Response:
            fields = await Fields.read(request)
            return _json(await run_in_threadpool(answer, opened, fields))

        return Route(path, endpoint, methods=["POST"])

    routes: list[BaseRoute] = [
        Route("/", page),
        Route(f"/{PAGE_FILES}/{STATE_SCRIPT}", state_js),
        Mount(f"/{PAGE_FILES}", StaticFiles(directory=opened.page_files, check_dir=False)),
        Route("/pictures/{row}", picture),
        Route("/api/state", state),
        post("/api/edits", edit),
        post("/api/split", preview_split),
        post("/api/search", search),
        post("/api/duplicates", duplicates),
        post("/api/duplicates/list", list_duplicates),
        post("/api/exports", export),
    ]
    return Starlette(routes=routes, exception_handlers=dict.fromkeys((StaleError, *_EXPECTED), _refused))


_EXPECTED = (ValueError, OSError, RuntimeError)
"""Errors that say what to do, as on the command line."""


def _json(value: Any, status: int = 200) -> Response:
    """An answer in ASCII, as names and paths may hold halves of characters."""
    return Response(json.dumps(value, separators=(",", ":")), status, media_type="application/json")


def _refused(_request: Request, error: Exception) -> Response:
    """An error as an answer that the page can show."""
    status = 409 if isinstance(error, StaleError) else error.status if isinstance(error, BadRequestError) else 422
    return _json({"error": str(error)}, status)


_EDITS: dict[str, Callable[[Editor, Fields], None]] = {
    "rename": lambda editor, fields: editor.add(
        make_edits.rename(editor.view, fields.whole("group"), fields.text("name"))
    ),
    "merge": lambda editor, fields: editor.add(
        make_edits.merge(editor.view, fields.wholes("groups"), fields.text("name") if "name" in fields else None)
    ),
    "split": lambda editor, fields: editor.add(editor.split(fields.whole("group"), _parts(fields))),
    "pin": lambda editor, fields: editor.add(
        *make_edits.pin_images(editor.view, fields.wholes("pictures"))
        if "pictures" in fields
        else make_edits.pin(editor.view, [fields.whole("group")])
    ),
    "move": lambda editor, fields: editor.add(
        make_edits.move(editor.view, fields.wholes("pictures"), fields.whole("group"))
    ),
    "undo": lambda editor, _: editor.undo(),
    "redo": lambda editor, _: editor.redo(),
}


def edit(opened: OpenResult, fields: Fields) -> dict[str, Any]:
    """Make an edit, take one back, or make it again."""
    make = _EDITS[fields.one_of("edit", _EDITS)]
    with opened.editor.changing(fields.text("revision")):
        make(opened.editor, fields)
    return opened.state()


def preview_split(opened: OpenResult, fields: Fields) -> dict[str, Any]:
    """The parts that a split would make."""
    parts = opened.editor.preview(fields.whole("group"), _parts(fields), _PREVIEWED)
    return {"parts": [{"name": part.name, "size": len(part.rows), "typical": part.typical} for part in parts]}


def _parts(fields: Fields) -> int:
    parts = fields.whole("into")
    if not 2 <= parts <= 100:
        raise BadRequestError("a group can be split in 2 to 100 parts")
    return parts


def search(opened: OpenResult, fields: Fields) -> dict[str, Any]:
    """Pictures by what they show, or by what they are like; the best first."""
    like = fields.whole("like") if "like" in fields else None
    hits = opened.search(None if like is not None else fields.text("text"), like)
    return {"pictures": [hit.row for hit in hits], "similarity": [round(hit.similarity, 4) for hit in hits]}


def duplicates(opened: OpenResult, _fields: Fields) -> dict[str, Any]:
    """Pictures that are there more than once."""
    found = opened.duplicates()
    facts = ("row", "width", "height", "bytes", "distance")
    return {
        "groups": [
            {
                "kind": group.kind,
                "copies": [{fact: getattr(copy, fact) for fact in facts} for copy in group.copies],
            }
            for group in found.groups
        ],
        "pictures": found.n_images,
        "missing": len(found.missing),
    }


def list_duplicates(opened: OpenResult, _fields: Fields) -> dict[str, Any]:
    """Write the list of duplicates to a file."""
    return {"file": shown_path(opened.list_duplicates().absolute())}


def export(opened: OpenResult, fields: Fields) -> dict[str, Any]:
    """Take pictures away."""
    place, done = opened.export(
        fields.wholes("pictures") if "pictures" in fields else None,
        fields.one_of("to", TARGETS),
        fields.text("name"),
        by=fields.one_of("by", get_args(Placing)),
        nested=fields.flag("nested"),
        without_duplicates=fields.flag("without_duplicates"),
    )
    return {
        "folder": shown_path(place.absolute()),
        "written": done.written,
        "removed": done.removed,
        "missing": len(done.missing),
        "changed": len(done.changed),
    }
