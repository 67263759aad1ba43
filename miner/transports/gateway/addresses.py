"""Base addresses of gateways: what is sent where. Pure."""

import ipaddress
import re
from urllib.parse import urlsplit

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")


def base_address(text: str, *, allow_http: bool = False) -> str:
    """Returns an address as `scheme://host[:port]`, in lower case.

    Args:
        text: An address without path, user and query.
        allow_http: Whether `http` is taken beyond this machine. Whoever reads such a request can
            act as the worker for 30 s.

    Raises:
        ValueError: It is none; says what is wrong with it.
    """
    example = "write https://HOST or https://HOST:PORT"
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"{text[:80]!r} is no address of a gateway; {example}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{text[:80]!r} has more than a host and a port; {example}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    host = parts.hostname
    if port == 0 or not is_host(host):
        raise ValueError(f"{text[:80]!r} has no usable host or port; {example}")
    if parts.scheme == "http" and not allow_http and not is_this_machine(host):
        raise ValueError(
            f"{text[:80]!r} is not encrypted, and whoever reads a signature can use it for 30 s; "
            "use https://, or insist with --gateway.allow_http"
        )
    shown = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80}[parts.scheme]
    return f"{parts.scheme}://{shown}" + ("" if port in (None, usual) else f":{port}")


def host_of(address: str) -> str:
    """Returns the host of a base address, with its port where it is not the usual one."""
    return urlsplit(address).netloc


def is_host(host: str) -> bool:
    """Whether this is an IP address or a host name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and _HOST.fullmatch(host) is not None
    return True


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
