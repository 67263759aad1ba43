"""The page of the HTTP transport and the viewer that it shares with the demo's report.

`static/` holds plain files: the page's HTML, CSS and ES modules, and `viewer.js`, which `viewer/`
builds from Spark and three.js.
"""

from importlib.resources import files

from starlette.routing import Route

from miner.web.package_files import PackageFiles

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
_FILES = PackageFiles(files("miner.web").joinpath("static"), CONTENT_SECURITY_POLICY)


def web_routes() -> list[Route]:
    """Returns the routes of the page: `GET /` and `GET /web/NAME` for each of its files.

    They need no key: what they serve does not depend on the caller.
    """
    return [
        Route("/", _FILES.serve, methods=["GET"]),
        Route("/web/{name}", _FILES.serve, methods=["GET"]),
    ]


def static_file(name: str) -> bytes:
    """Returns the content of one of the page's files, such as `viewer.js`.

    Raises:
        KeyError: There is none of that name.
    """
    return _FILES.content(name)
