"""TCP ports."""

import errno
import socket

from protocol.errors import SetupError


def bound_socket(ip: str, port: int, *, setting: str = "--axon.port") -> socket.socket:
    """Binds a TCP port without listening, so that a taken one is reported before models are loaded.

    Args:
        ip: Address to listen on.
        port: Port to listen on.
        setting: The flag with which the operator chooses another port.

    Raises:
        SetupError: The port or the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it, the second
    # part of a small answer waits 40 ms for the client's acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((ip, port))
    except OSError as error:
        bound.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise SetupError(
            f"port {port} on {ip} cannot be used: {error.strerror}",
            fix=f"choose another {setting}, or see what uses it: ss -ltnp 'sport = :{port}'"
            if taken
            else f"give an address of this machine with {setting.replace('.port', '.ip')}: ip addr",
        ) from error
    return bound
