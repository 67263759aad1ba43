"""HTTP answers that are read up to a limit."""

import aiohttp

MAX_ANSWER_BYTES = 16 * 2**20
"""Image tasks are the largest answers: 8 MiB in base64."""

_CHUNK_BYTES = 2**16


class BoundedResponse(aiohttp.ClientResponse):
    """An aiohttp response that fails once its unpacked body exceeds `MAX_ANSWER_BYTES`.

    For `aiohttp.ClientSession(response_class=...)`, where the caller cannot read in chunks.
    """

    async def read(self) -> bytes:
        """Returns the body.

        Raises:
            aiohttp.ClientPayloadError: It is too large; the connection is closed.
        """
        if self._body is None:
            body = bytearray()
            async for chunk in self.content.iter_chunked(_CHUNK_BYTES):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(
                        f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
                    )
            self._body = bytes(body)
        return await super().read()
