"""Every request that the HTTP port answers: one table for the routes and for the API's document."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miner.transports.http.files import FORMATS
from miner.transports.http.models import (
    GenerateFields,
    Health,
    Job,
    MinerStatus,
    Problem,
    TaskFields,
)

Handler = Callable[[Request], Awaitable[Response]]

JSON, EVENTS = "application/json", "text/event-stream"


@dataclass(frozen=True)
class Reply:
    """One kind of answer.

    Attributes:
        words: What it means.
        content: Models by media type; None where the body is no JSON.
        headers: What the headers beside it hold, by name.
    """

    words: str
    content: Mapping[str, type[BaseModel] | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def _problem(words: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(words, {JSON: Problem}, headers or {})


_RETRY = {"Retry-After": "seconds"}
_TASK = {"X-Task-Id": "the task's id, without characters that are unsafe in a log"}
_SECONDS = {"Server-Timing": "milliseconds by stage, and the total"}
_WORDS = {
    "X-Understood-Words": "words of the prompt that the networks know, where these are few",
    "X-Ignored-Words": "its other words, percent-encoded",
}


_SCORE = {
    "X-Seed": "of the object, where it has one",
    "X-Score": "what a validator is expected to give it; this and the next ones with a scorer only",
    "X-Score-Parts": "what the score is made of, such as `quality=0.8123, alignment=0.6611`",
    "X-Scorer": "who gave it",
    "X-First-Score": "the score of the first object",
    "X-Candidates": "objects that were scored, the first one included",
    "X-Gated": "`yes` if the score is below what the miner would submit to a validator, else `no`",
}


_ALWAYS = {
    400: _problem("this is not HTTP/1.1"),
    403: _problem("a web page of another server sent it, or the `Host` is not known"),
    431: _problem("the headers are too large"),
    500: _problem("the miner itself failed, under this `error_id` in its log"),
    503: _problem("too many connections or requests; `Retry-After` says when to try again", _RETRY),
}
_KEY = {401: _problem("the API key is missing or wrong")}
_GONE = {404: _problem("there is no such job, or it has been forgotten")}
_BODY = {
    400: _problem("the request, the form or the JSON is damaged, or has too many fields"),
    408: _problem("the body did not arrive in time"),
    413: _problem("the body is too large"),
    415: _problem("the body is neither a form nor JSON, or it is compressed"),
    422: _problem(
        "rejected: the fields can be read, but not used, or the 3D back end makes no mesh, and "
        "`format` asks for one"
    ),
}
_NO_OBJECT = {
    422: _problem(
        "rejected: the fields can be read, but not used, `format` asks for a mesh and the 3D back "
        "end makes none, the networks know no word of the prompt, or the picture has no object; or "
        "completed, and withheld, because the gate is against it "
        "(`below_threshold`): the same request gives the same object",
        _TASK | _WORDS | _SCORE,
    ),
    500: _problem("failed: this generation failed, or the miner itself, with an `error_id`"),
    503: _problem("dropped: it would be late, or the miner takes nothing at the moment", _RETRY),
}


@dataclass(frozen=True)
class Operation:
    """One method at one address.

    Attributes:
        method: In capitals.
        path: With the names of parameters in braces.
        name: Of its handler.
        title: What it does, in a few words.
        replies: By status.
        words: More about it.
        fields: What its body holds, if it takes one.
        needs_key: Whether the API key is asked for, if there is one.
    """

    method: str
    path: str
    name: str
    title: str
    replies: Mapping[int, Reply]
    words: str = ""
    fields: type[BaseModel] | None = None
    needs_key: bool = True


_FILE_TYPES = {each.media_type: None for each in FORMATS.values()}

OPERATIONS = (
    Operation(
        "POST",
        "/generate",
        "generate",
        "Make an object and wait for its file",
        _ALWAYS
        | _KEY
        | _BODY
        | _NO_OBJECT
        | {200: Reply("the file", _FILE_TYPES, _TASK | _SECONDS | _WORDS | _SCORE)},
        words="A caller that closes the connection cancels the request.",
        fields=GenerateFields,
    ),
    Operation(
        "POST",
        "/jobs",
        "create",
        "Start a job",
        _ALWAYS | _KEY | _BODY | {202: Reply("the job", {JSON: Job}, {"Location": "its address"})},
        words="The job goes on whether anybody watches it or not.",
        fields=TaskFields,
    ),
    Operation(
        "GET",
        "/jobs/{id}",
        "show",
        "Look at a job",
        _ALWAYS | _KEY | _GONE | {200: Reply("the job", {JSON: Job})},
    ),
    Operation(
        "DELETE",
        "/jobs/{id}",
        "remove",
        "Cancel or forget a job",
        _ALWAYS | _KEY | _GONE | {204: Reply("there is no such job any more")},
    ),
    Operation(
        "GET",
        "/jobs/{id}/events",
        "events",
        "Watch a job",
        _ALWAYS
        | _KEY
        | _GONE
        | {200: Reply("server-sent events; the `data` of each is a `Job`", {EVENTS: None})},
        words="An event at every change, the first one at once; the stream ends with the job.",
    ),
    Operation(
        "GET",
        "/jobs/{id}/files/{name}",
        "file",
        "Download a file of a job",
        _ALWAYS
        | _KEY
        | _NO_OBJECT
        | {
            404: _problem(
                "there is no such job or file, the job is not done, or the file is a mesh and the "
                "3D back end makes none"
            )
        }
        | {200: Reply("the file", _FILE_TYPES)},
        words="A mesh is made when it is asked for first, by a second request of the miner's; the "
        "preview is rendered then. Both take seconds.",
    ),
    Operation(
        "GET",
        "/status",
        "status",
        "Look at the miner",
        _ALWAYS | _KEY | {200: Reply("what it does at the moment", {JSON: MinerStatus})},
    ),
    Operation(
        "GET",
        "/health",
        "health",
        "Ask whether requests are taken",
        {status: reply for status, reply in _ALWAYS.items() if status != 403}
        | {200: Reply("they are", {JSON: Health})}
        | {503: Reply("they are not: the state's name", {JSON: Health})},
        words="For probes: any page and any name may ask.",
        needs_key=False,
    ),
)
"""In the order of the document."""

ALIASES = {"/generate/": "/generate"}
"""Other addresses of the same, which the document leaves out."""


def routes_of(
    handlers: Mapping[str, Handler], with_key: Callable[[Handler], Handler]
) -> list[Route]:
    """Returns a route for every address of the table.

    Args:
        handlers: By the names of the operations.
        with_key: Makes a handler ask for the API key.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in OPERATIONS:
        handler = handlers[operation.name]
        by_method = by_path.setdefault(operation.path, {})
        by_method[operation.method] = with_key(handler) if operation.needs_key else handler
    paths = {path: path for path in by_path} | ALIASES
    return [
        Route(path, _dispatch(by_path[own]), methods=list(by_path[own]))
        for path, own in paths.items()
    ]


def _dispatch(by_method: Mapping[str, Handler]) -> Handler:
    """One handler for all methods of an address, so that `Allow` can list them."""

    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        if method not in by_method:
            raise HTTPException(405, headers={"Allow": ", ".join(by_method)})
        return await by_method[method](request)

    return handle
