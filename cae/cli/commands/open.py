"""`cae open RESULT`: the page of a result in the browser, where it can be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cae.cli import terminal
from cae.cli.options import Device, Images, ResultFolder, SearchEncoder, Weights


def open_result(
    result: ResultFolder,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only print its address.")
    ] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to serve on; by default one that is free.", show_default=False)
    ] = 0,
    exports: Annotated[Path, typer.Option(help="Folder below which exports from the page go.", metavar="DIR")] = Path(
        "cae-export"
    ),
    encoder: SearchEncoder = None,
    encoder_weights: Weights = None,
    images: Images = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the address alone, and warnings.")] = False,
) -> None:
    """Open a result in the browser: rename, merge, split, move, search and take away. Ends with Ctrl-C."""
    terminal.note_loading(quiet=quiet)
    try:
        from cae.app.opened import OpenResult
        from cae.app.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ValueError(f"`cae open` needs `pip install 'cae-clustering[app]'` ({error})") from error

    opened = OpenResult(result, exports, images=images, encoder=encoder, encoder_weights=encoder_weights, device=device)

    def announce(address: str) -> None:
        terminal.out.print(address, soft_wrap=True, highlight=False)
        if not quiet:
            terminal.note("the page is open to this machine alone; Ctrl-C ends it")

    serve(opened, port=port, browser=browser, announce=announce, progress=not quiet)
