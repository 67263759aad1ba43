"""How front and engine recognise each other before either reads a Python object of the other.

Both know a secret: the front says the first half, the engine answers with the second.
"""

import asyncio
import hmac
import secrets
import socket

SECRET_BYTES = 64
HALF = SECRET_BYTES // 2

LIMIT_S = 10.0
"""For one connection to be recognised."""

PAUSE_S = 0.1
"""Before the next try to accept a connection where one failed: there may be no free handle."""


def new_secret() -> bytes:
    """Draws a secret for one engine."""
    return secrets.token_bytes(SECRET_BYTES)


async def connect(address: tuple[str, int], secret: bytes) -> socket.socket:
    """Connects the front to an engine.

    Raises:
        OSError: It is not reached within `LIMIT_S`, or something else listens there.
    """
    connection = socket.socket(family_of(address[0]))
    try:
        connection.setblocking(False)
        async with asyncio.timeout(LIMIT_S):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, secret[:HALF])
            if not hmac.compare_digest(await _receive(connection), secret[HALF:]):
                raise ConnectionError("what listens there is not the engine")
    except BaseException as error:
        connection.close()
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"no answer within {LIMIT_S:.0f} s") from None
        raise
    connection.setblocking(True)
    return connection


async def accept(listener: socket.socket, secret: bytes, limit_s: float) -> socket.socket | None:
    """Waits for the front; strangers who connect before do not delay it.

    Args:
        listener: Closed at the end.
        secret: Only who knows it is answered.
        limit_s: Seconds after which None is returned.
    """
    loop = asyncio.get_running_loop()
    front: asyncio.Future[socket.socket] = loop.create_future()
    checks: set[asyncio.Task[None]] = set()

    async def check(connection: socket.socket) -> None:
        known = False
        try:
            connection.setblocking(False)
            async with asyncio.timeout(LIMIT_S):
                if hmac.compare_digest(await _receive(connection), secret[:HALF]):
                    await loop.sock_sendall(connection, secret[HALF:])
                    known = not front.done()
        except OSError:
            pass
        finally:
            if known:
                front.set_result(connection)
            else:
                connection.close()

    async def check_all() -> None:
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(PAUSE_S)
                continue
            task = asyncio.create_task(check(connection))
            checks.add(task)
            task.add_done_callback(checks.discard)

    listener.setblocking(False)
    accepting = asyncio.create_task(check_all())
    try:
        async with asyncio.timeout(limit_s):
            connection = await front
    except TimeoutError:
        return None
    finally:
        ending = {accepting, *checks}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        listener.close()
    connection.setblocking(True)
    return connection


def family_of(host: str) -> socket.AddressFamily:
    """Returns what an IP address belongs to."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


async def _receive(connection: socket.socket) -> bytes:
    """Receives half a secret; less where the connection ends before."""
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < HALF and (more := await loop.sock_recv(connection, HALF - len(received))):
        received += more
    return received
