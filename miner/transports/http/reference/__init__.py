"""`GET /docs`: the API's document as a page, drawn by Redoc, which is part of the package."""

import hashlib
from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
    "redoc.js": "text/javascript; charset=utf-8",
    "redoc.LICENSE.txt": "text/plain; charset=utf-8",
}
_HEADERS = {
    # Redoc writes style sheets into the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def reference_routes() -> list[Route]:
    """Returns the routes of the page and its files; they need no key."""
    return [
        Route("/docs", _serve, methods=["GET"]),
        Route("/docs/{name}", _serve, methods=["GET"]),
    ]


async def _serve(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    if name not in _TYPES:
        raise HTTPException(404)
    content, tag = _file(name)
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, _TYPES[name])


@cache
def _file(name: str) -> tuple[bytes, str]:
    content = files(__name__).joinpath(name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
