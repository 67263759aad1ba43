"""A request that the axon does not serve: its status, and the words for caller and log."""

from starlette.responses import JSONResponse

from miner.transports.refusals import Refusal
from protocol.text import printable


class Refused(ValueError):
    """Raised instead of serving a request.

    Args:
        status: HTTP status, 400..499.
        code: The word for the score log, as docs/push-protocol.md lists it.
        reason: One sentence for the caller; may quote foreign text.
        headers: More headers of the answer.
    """

    def __init__(
        self, status: int, code: str, reason: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        # Dendrites read it from a header, and headers take no other characters.
        shown = printable(reason, 300).encode("ascii", "replace").decode()
        self.refusal = Refusal(code, shown)
        self._headers = headers or {}

    def response(self) -> JSONResponse:
        """The answer, as Bittensor's dendrites since 7.0 read it: unsigned, with the reason."""
        return self.refusal.answer(
            self.status,
            {
                "bt_header_axon_status_code": str(self.status),
                "bt_header_axon_status_message": self.refusal.reason,
                **self._headers,
            },
        )
