"""Who may ask the server: the browser of this machine, from the page itself, with the token.

| what could happen | what prevents it |
| --- | --- |
| another machine asks | the server listens on the loopback alone |
| another site's name is made to lead here (DNS rebinding) | `Host` has to be this address and port |
| another site, or server of this machine, asks by the browser | `Origin`, `Sec-Fetch-Site`; `SameSite=Strict` |
| another user or program of this machine asks | the token, 256 random bits, compared in constant time |
| the page is put into a frame of another | `frame-ancestors` |
| a file is taken for a page, or a text for markup | `nosniff`, and a policy that runs only the page's own scripts |
"""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
_DOOR = '<!doctype html><html lang="en"><title>cae</title><link rel="icon" href="data:,">'
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by the browser, and asked for each time whether it is still the same.
    "Cache-Control": "private, no-cache",
}


class Guard:
    """Passes allowed requests on, and adds to every answer the headers that restrict what the browser does with it.

    Args:
        app: the application behind the guard.
        token: the secret that lets a browser in.
        port: the port that the server listens on.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self.app, self.token = app, token
        ends = (f":{port}", "") if port == 80 else (f":{port}",)  # browsers leave out the port that is HTTP's own
        self.hosts = {name + end for name in (HOST, "localhost") for end in ends}
        self.cookie = f"cae-{port}"  # browsers send the cookies of all ports of a host to each

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        answer = self._refuse(request) or self._let_in(request) or self._ask_for_token(request) or self.app

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await answer(scope, receive, with_headers)

    def _refuse(self, request: Request) -> Response | None:
        """The refusal of a request that another site or address made; None for others."""
        if request.headers.get("host") not in self.hosts:
            return PlainTextResponse("this server answers to its own address only", 403)
        origin = request.headers.get("origin")
        own = f"http://{request.headers['host']}"
        if (origin is not None and origin != own) or (origin is None and request.method not in ("GET", "HEAD")):
            return PlainTextResponse("asked by another site", 403)
        # A link on another site may lead to the page, which does nothing by being looked at.
        if request.url.path != "/" and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("asked by another site", 403)
        return None

    def _let_in(self, request: Request) -> Response | None:
        """The answer to the address that was printed: moves its token into a cookie. None for other requests."""
        if request.url.path != "/" or not self._is_token(request.query_params.get("token", "")):
            return None
        # An empty page that goes on to the real one: a redirect would count as coming from wherever the link was.
        answer = Response(_DOOR, headers={"Refresh": "0; url=/"}, media_type="text/html")
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
        return answer

    def _ask_for_token(self, request: Request) -> Response | None:
        """The refusal of a request without the cookie; None for others."""
        if self._is_token(request.cookies.get(self.cookie, "")):
            return None
        return PlainTextResponse("open the address that `cae open` has printed, with its token", 403)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self.token.encode())
