"""A Hugging Face hub on loopback: the few addresses that a download asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """What the server offers and what it was asked.

    Attributes:
        address: Its endpoint.
        repos: Content by path, by repository.
        gated: Repositories whose files nobody may have.
        commit: The newest revision of every repository.
        refusals: Status and headers of the answer to every path that holds the key.
        requests: Method, path and Range header of each request.
    """

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    commit: str = COMMIT
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """Paths of the files that were sent."""
        return [
            path for method, path, _ in self.requests if method == "GET" and "/api/" not in path
        ]


def entry(path: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    lfs = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
    names = {"rfilename": path, "path": path, "type": "file"}
    return names | {"size": len(content), "oid": digest[:40], "blobId": digest[:40], "lfs": lfs}


@contextmanager
def serve() -> Iterator[LocalHub]:
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            hub.requests.append((self.command, path, self.headers.get("Range")))
            for part, (status, headers) in hub.refusals.items():
                if part in path:
                    self.send_response(status)
                    for name, value in (headers | {"Content-Length": "0"}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    return
            if path.startswith("/api/models/"):
                _, _, _, owner, name, *rest = path.split("/")
                files = hub.repos[f"{owner}/{name}"]
                entries = [entry(path, content) for path, content in files.items()]
                commit = rest[1] if rest else hub.commit
                info = {"id": f"{owner}/{name}", "sha": commit, "siblings": entries}
                self.send(json.dumps(entries if "tree" in rest else info).encode(), body=body)
                return
            owner, name, _, commit, *parts = path.strip("/").split("/")
            if f"{owner}/{name}" in hub.gated:
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = hub.repos[f"{owner}/{name}"]["/".join(parts)]
            digest = hashlib.sha256(content).hexdigest()
            self.send(content, body=body, ETag=f'"{digest}"', X_Repo_Commit=commit)

        def send(self, content: bytes, *, body: bool, **headers: str) -> None:
            start = 0
            if (wanted := self.headers.get("Range")) is not None:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_response(206 if wanted else 200)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if body:
                self.wfile.write(content[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
