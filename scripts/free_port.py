"""A port for a server on this machine that is started soon."""

import contextlib
import secrets
import socket

_LOWEST, _COUNT = 12_000, 20_000
"""Below the ports that Linux gives to connections, from 32,768 on (ip(7)): one of these could be in
use again before the server listens."""


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody uses now."""
    while True:
        port = _LOWEST + secrets.randbelow(_COUNT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
