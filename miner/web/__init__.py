"""The page of the HTTP transport and the viewer that it shares with the demo's report.

`static/` holds plain files: the page's HTML, CSS and ES modules, and `viewer.js`, which `viewer/`
builds from Spark and three.js.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_PAGE = "index.html"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        # The viewer compiles its own WebAssembly and starts its workers from blobs.
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src blob:",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The names have no version in them: a browser asks again, and mostly gets 304.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def web_routes() -> list[Route]:
    """Returns the routes of the page: `GET /` and `GET /web/NAME` for each of its files.

    They need no key: what they serve is the same for everybody.
    """
    return [Route("/", _serve, methods=["GET"]), Route("/web/{name}", _serve, methods=["GET"])]


def static_file(name: str) -> bytes:
    """Returns the content of one of the page's files, such as `viewer.js`.

    Raises:
        KeyError: There is none of that name.
    """
    return _files()[name].content


async def _serve(request: Request) -> Response:
    file = _files().get(request.path_params.get("name", _PAGE))
    if file is None:
        return Response('{"message": "there is no such file"}', 404, None, "application/json")
    headers = {**_HEADERS, "ETag": file.etag}
    known = {tag.strip().removeprefix("W/") for tag in _if_none_match(request).split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, 200, headers, file.media_type)


def _if_none_match(request: Request) -> str:
    return ",".join(request.headers.getlist("if-none-match"))


@cache
def _files() -> dict[str, _File]:
    """Every file of `static/` by name: a request can name nothing else."""
    found = {}
    for entry in files("miner.web").joinpath("static").iterdir():
        content = entry.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:32]
        media_type = _TYPES[entry.name.rpartition(".")[2]]
        found[entry.name] = _File(content, media_type, f'"{digest}"')
    return found
