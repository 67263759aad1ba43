"""Why a call of ours had no answer, in words."""

import os

import aiohttp


def never_sent(error: BaseException | None) -> bool:
    """Whether the server cannot have received the request: there was no connection."""
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def connection_fault(error: BaseException | None, host: str, limit_s: float) -> str | None:
    """Returns what kept a call from an answer; None where it was not the connection.

    Args:
        error: What aiohttp raised.
        host: Where the request was sent.
        limit_s: Seconds that the call could take.
    """
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the name of the host {host} cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio's own words, "Connect call failed", hide the reason.
        number = error.os_error.errno
        reason = os.strerror(number) if number else str(error.os_error)
        return f"no connection to {host}: {reason}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection to {host} in time; a firewall does this"
    if isinstance(error, TimeoutError):
        return f"no answer from {host} within {limit_s:g} s"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return f"{host} closed the connection without an answer"
    return None
