"""The page of a result on a port of this machine: `serve` until Ctrl-C, `serving` for a block of Python."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from cae.app.guard import HOST, Guard
from cae.app.opened import OpenResult
from cae.app.routes import create_app
from cae.utils.console import progress_bars
from cae.utils.termination import terminating_as_ctrl_c

_SECONDS_TO_FINISH = 5
"""For answers under way when the server is told to end."""


def serve(
    opened: OpenResult,
    *,
    port: int = 0,
    browser: bool = True,
    announce: Callable[[str], None] = print,
    progress: bool = True,
) -> None:
    """Serve the page of a result to the browser of this machine, until Ctrl-C; then draw it with its edits on disk.

    In the main thread SIGTERM, by which systems end a program, does as Ctrl-C does.

    Args:
        opened: the result.
        port: to listen on; 0 for a free one.
        browser: open the page in the system's browser.
        announce: called with the page's address, which holds the token that lets a browser in.
        progress: whether progress of drawing the page is shown, on the error stream.

    Raises:
        OutputError, ResultError: the page cannot be drawn.
        OSError: the port is taken.

    Examples:
        >>> serve(OpenResult("cae-result"))  # doctest: +SKIP
        http://127.0.0.1:43117/?token=...
    """
    with (
        _listening(opened, port, progress) as (server, listener, address),
        terminating_as_ctrl_c(),
        suppress(KeyboardInterrupt),
    ):
        announce(address)
        if browser:  # in a thread: some browsers, as those in a terminal, return only once they have the page
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.run(sockets=[listener])  # which hands on the signal that it has ended for, as KeyboardInterrupt


@contextmanager
def serving(opened: OpenResult, *, port: int = 0, progress: bool = True) -> Iterator[str]:
    """Serve the page from a thread, as in a notebook, until the block ends; gives its address.

    Args:
        opened: the result.
        port: as in `serve`.
        progress: as in `serve`.

    Raises:
        OutputError, ResultError, OSError: as `serve`.

    Examples:
        >>> with serving(OpenResult("cae-result"), progress=False) as address:
        ...     print(address)
        http://127.0.0.1:.../?token=...
    """
    with _listening(opened, port, progress) as (server, listener, address):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _listening(opened: OpenResult, port: int, progress: bool) -> Iterator[tuple[uvicorn.Server, socket.socket, str]]:
    """A server that has not begun, its socket and its address. The page is drawn before, and with the edits after."""
    with socket.socket() as listener:
        if os.name == "posix":  # connections of a server that has just ended hold its port for a minute otherwise
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            raise OSError(f"port {port} cannot be had ({error.strerror}): give another with --port") from error
        _draw(opened, progress)
        token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
        config = uvicorn.Config(
            Guard(create_app(opened), token=token, port=port),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        )
        try:
            yield uvicorn.Server(config), listener, f"http://{HOST}:{port}/?token={token}"
        finally:  # also where the block fails: the edits are made
            listener.close()  # a browser would wait for an answer
            _draw(opened, progress)


def _draw(opened: OpenResult, progress: bool) -> None:
    with progress_bars(quiet=not progress) as reporter:
        opened.page(reporter, with_edits=True)
