"""How requests reach the miner: each transport turns bytes and a caller into a `Request`."""

from typing import Protocol


class Transport(Protocol):
    """One kind of connection over which requests reach the service.

    Attributes:
        name: Its name in the score log.
    """

    name: str

    async def serve(self) -> None:
        """Starts to serve and returns.

        Before the service is ready, requests are answered as dropped, or not fetched.

        Raises:
            SetupError: The transport cannot start.
        """

    async def close(self) -> None:
        """Sends the answers that are ready and stops; call it after the service has drained."""
