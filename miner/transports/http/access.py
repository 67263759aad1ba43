"""Who may use the HTTP port: callers with the key, programs, and the server's own pages.

A web page that a user of this machine visits can post a form to any address, this one included. A
browser says in `Origin` and `Sec-Fetch-Site` where such a request comes from; programs send
neither. A page whose own name is made to point here (DNS rebinding) is known by its `Host`. No
answer carries CORS headers, so no foreign page can send the key.
"""

import hmac
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from miner.transports.body_limit import App, Message, Receive, Send
from miner.transports.refusals import Refusal
from protocol.errors import SetupError
from protocol.text import printable

_READING = ("GET", "HEAD", "OPTIONS")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ApiKey:
    """The key that callers must send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Either is enough, whatever the other holds: a proxy may need the `Authorization` header for a
    token of its own.

    Args:
        key: The key.
    """

    def __init__(self, key: str) -> None:
        # Clients send a key beyond ASCII in either encoding.
        encodings = {key.strip().encode(), key.strip().encode("latin-1", "ignore")}
        self._accepted = [encoded for encoded in encodings if encoded]

    def is_in(self, headers: Headers) -> bool:
        """Returns whether a request has the key; takes as long whatever it holds."""
        given = [value.strip() for value in headers.getlist("x-api-key")]
        for value in headers.getlist("authorization"):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                given.append(token.strip())
        matches = [
            hmac.compare_digest(value.encode("latin-1", "replace"), accepted)
            for value in given
            for accepted in self._accepted
        ]
        return any(matches)


class OwnPages:
    """Tells the requests of foreign web pages from others.

    Args:
        ip: The address that the server listens on.
        hosts: Names, beside this machine's, by which it may be addressed.
        setting: The flag with which the operator adds one, if there is one.
    """

    def __init__(
        self, ip: str, hosts: Iterable[str] = (), *, setting: str | None = "--http.hosts"
    ) -> None:
        self._remedy = f", or start it with that name in {setting}" if setting else ""
        self._loopback = is_loopback(ip)
        self._listed = frozenset(_bare(host) for host in hosts)
        self._own = {"localhost", _bare(ip), *self._listed}

    def refusal(self, method: str, headers: Headers) -> Refusal | None:
        """Returns why a request is refused, or None if it is not.

        Args:
            method: Its method, in capitals.
            headers: Its headers.
        """
        host = headers.get("host", "")
        origins = headers.getlist("origin")
        from_page = bool(origins) or "sec-fetch-site" in headers
        if host and not self._is_own_host(host, from_page):
            return Refusal(
                "foreign_host",
                f"this miner is not known as {printable(host, 100)}; use its address{self._remedy}",
            )
        if method in _READING:
            return None
        site = headers.get("sec-fetch-site", "none").strip().lower()
        foreign = site not in ("none", "same-origin") and not origins
        if foreign or not all(self._is_own_origin(origin, host) for origin in origins):
            shown = printable(origins[0], 100) if origins else f"a {printable(site, 40)} page"
            return Refusal(
                "foreign_origin",
                f"the request comes from the web page {shown}, which is not the miner's own; use "
                "a program such as curl, or an API key",
            )
        return None

    def _is_own_host(self, host: str, from_page: bool) -> bool:
        name = _name_and_port(f"//{host}", 80)[0]
        if name in self._own or is_loopback(name):
            return True
        if not name:
            return False
        if not from_page:
            # Programs use names that the miner cannot know: a container's, or beyond this machine a
            # proxy's. On this machine a name with a dot may be a page's whose browser is old.
            return not self._loopback or "." not in name
        # No page can make an address its own.
        return not self._loopback and _is_address(name)

    def _is_own_origin(self, origin: str, host: str) -> bool:
        scheme = origin.partition("://")[0].lower()
        if scheme not in _DEFAULT_PORTS:
            return False
        port = _DEFAULT_PORTS[scheme]
        own = _name_and_port(origin, port)
        return own[0] in self._listed or (bool(host) and own == _name_and_port(f"//{host}", port))


class OwnPagesOnly:
    """ASGI middleware that answers 403 to what `OwnPages` refuses, but for probes of `/health`.

    Args:
        app: The application behind.
        own_pages: Judges.
        on_refusal: Called with what was refused.
    """

    def __init__(
        self, app: App, *, own_pages: OwnPages, on_refusal: Callable[[Refusal], object]
    ) -> None:
        self._app = app
        self._own_pages = own_pages
        self._on_refusal = on_refusal

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request as ASGI asks for it."""
        refusal = None
        if scope["type"] == "http" and not _is_probe(scope):
            refusal = self._own_pages.refusal(scope["method"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self._on_refusal(refusal)
        await refusal.answer(403)(scope, receive, send)


def _is_probe(scope: Message) -> bool:
    return scope["path"] == "/health" and scope["method"] in ("GET", "HEAD")


def check_exposure(ip: str, api_key: str | None, *, allow_open: bool) -> None:
    """Checks that only users of this machine can reach the GPU without a key.

    Raises:
        SetupError: Others could, and `allow_open` does not say that this is intended.
    """
    if api_key is not None and not api_key.strip():
        raise SetupError(
            "the API key is empty",
            fix="put a long random text into MINER_HTTP_API_KEY, e.g. of: openssl rand -hex 32",
        )
    if api_key is None and not allow_open and not is_loopback(ip):
        raise SetupError(
            f"with --http.ip {ip} and no API key, anybody on the network could use this GPU",
            fix="put a key into MINER_HTTP_API_KEY, or listen on --http.ip 127.0.0.1, "
            "or allow it with --http.allow_open",
        )


def check_hosts(hosts: Sequence[str]) -> None:
    """Checks that every entry is a host name or an address, without scheme and port.

    Raises:
        SetupError: One is not.
    """
    for host in hosts:
        name = _bare(host)
        if _name_and_port(f"//{f'[{name}]' if ':' in name else name}", 80) != (name, 80):
            raise SetupError(
                f"--http.hosts has {printable(host, 100)}, which is not the name of a host",
                fix="list names with commas, without http:// and port: --http.hosts miner.example",
            )


def is_loopback(name: str) -> bool:
    """Returns whether a host name or address, without a port, is this machine's own."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bare(name: str) -> str:
    return name.strip().lower().strip("[]").rstrip(".")


def _name_and_port(url: str, default_port: int) -> tuple[str, int]:
    """The host name, in small letters, and the port of a URL; ("", 0) of anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "", 0
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or not parts.hostname:
        return "", 0
    return parts.hostname.rstrip("."), default_port if port is None else port
