"""`cae open`: the page of a result, served to the browser of this machine, where it can change the result.

server  the port, the browser, the end
guard   who may ask: this machine's browser, from the page itself, with the token
routes  what may be asked; each is a call of a function of `cae.results`
opened  the result that is open
fields  what a request says, checked

The extra `app` brings starlette and uvicorn, which this room needs.
"""

from cae.app.opened import OpenResult
from cae.app.server import serve, serving

__all__ = ["OpenResult", "serve", "serving"]
