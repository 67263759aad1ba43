"""The ways a request reaches the miner; each turns bytes and a caller into a `Request`."""

from typing import Protocol


class Transport(Protocol):
    """A way on which requests reach the service.

    Attributes:
        name: As the score log calls it.
    """

    name: str

    async def serve(self) -> None:
        """Opens the way and returns.

        Before the service is ready, requests are answered as dropped or not fetched at all.

        Raises:
            SetupError: It cannot be opened.
        """

    async def close(self) -> None:
        """Delivers what is under way and closes it; the service has been drained before."""
