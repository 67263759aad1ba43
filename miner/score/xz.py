"""Reads xz files in little memory: `lzma.open` takes what the file asks for, up to 4 GiB."""

import lzma
from pathlib import Path
from types import TracebackType

_CHUNK = 2**16


class XzFile:
    """An xz file, of one stream or more.

    Args:
        path: The file.
        most_memory: Bytes that unpacking may take.
    """

    def __init__(self, path: Path, *, most_memory: int) -> None:
        self._most_memory = most_memory
        self._unpacker: lzma.LZMADecompressor | None = None
        self._rest = b""
        self._file = open(path, "rb")  # noqa: SIM115

    def __enter__(self) -> "XzFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes; none at the end.

        Raises:
            lzma.LZMAError: The file is damaged, or asks for too much memory.
            EOFError: It is cut off.
        """
        while True:
            if self._unpacker is None:
                packed = self._rest or self._file.read(_CHUNK)
                if not packed:
                    return b""
                self._unpacker = lzma.LZMADecompressor(memlimit=self._most_memory)
            else:
                packed = self._file.read(_CHUNK) if self._unpacker.needs_input else b""
                if not packed and self._unpacker.needs_input:
                    raise EOFError("the file ends within a stream")
            data = self._unpacker.decompress(packed, size)
            if self._unpacker.eof:
                self._rest, self._unpacker = self._unpacker.unused_data, None
            if data:
                return data
