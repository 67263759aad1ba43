"""Files of a package as the answers of an HTTP server: what its pages consist of."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


class PackageFiles:
    """The files of one folder of a package, kept in memory from the first request on.

    Those of other types than HTML, CSS, JavaScript, SVG and text are left out; a request can name
    nothing else.

    Args:
        folder: Holds them.
        policy: The `Content-Security-Policy` of all of them.
    """

    def __init__(self, folder: Traversable, policy: str) -> None:
        self._folder = folder
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            # The names have no version in them: a browser asks again, and mostly gets 304.
            "Cache-Control": "no-cache",
        }

    def content(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
            KeyError: There is none of that name.
        """
        return self._files[name].content

    async def serve(self, request: Request) -> Response:
        """Answers with the file that the path parameter `name` names, `INDEX` without one.

        Raises:
            starlette.exceptions.HTTPException: Status 404, there is none of that name.
        """
        file = self._files.get(request.path_params.get("name", INDEX))
        if file is None:
            raise HTTPException(404, "there is no such file")
        headers = {**self._headers, "ETag": file.etag}
        given = ",".join(request.headers.getlist("if-none-match")).split(",")
        if {tag.strip().removeprefix("W/") for tag in given} & {file.etag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(file.content, 200, headers, file.media_type)

    @cached_property
    def _files(self) -> Mapping[str, _File]:
        found = {}
        for entry in self._folder.iterdir():
            media_type = _TYPES.get(entry.name.rpartition(".")[2])
            if media_type is not None:
                content = entry.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:32]
                found[entry.name] = _File(content, media_type, f'"{digest}"')
        return found
