"""`GET /docs`: the API's document as a page, drawn by Redoc, which is part of the package."""

from importlib.resources import files

from starlette.routing import Route

from miner.web.package_files import PackageFiles

# Redoc writes style sheets into the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = PackageFiles(files(__name__), _POLICY)


def reference_routes() -> list[Route]:
    """Returns the routes of the page and its files; they need no key."""
    return [
        Route("/docs", _FILES.serve, methods=["GET"]),
        Route("/docs/{name}", _FILES.serve, methods=["GET"]),
    ]
