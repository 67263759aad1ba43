"""Unpacks the one zstd frame that an SPZ file is, without trusting any size written in it.

A frame header may claim any content size, and four bytes of input can stand for 128 KiB of output.
The frame's blocks are therefore walked first (RFC 8878, section 3.1.1): that yields where the
frame ends and the most that it can hold, both before a byte of output is allocated.
"""

import zstandard

from protocol.errors import CodecError
from protocol.foreign_formats import describe

_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC = 0x184D2A50  # the low four bits are free for the writer
_BLOCK_HEADER_BYTES = 3
_MAX_BLOCK_BYTES = 128 * 1024
_CHECKSUM_BYTES = 4
_RAW, _RLE, _COMPRESSED = 0, 1, 2
_UNKNOWN_SIZE = -1
_MOST_BLOCKS = 1 << 15
"""An encoder writes a block per 128 KiB, so at most this many hold 4 GiB."""
_MOST_FRAMES = 16


def unpack(data: bytes, *, limit: int) -> bytes:
    """Decompresses a single zstd frame into at most `limit` bytes.

    Skippable frames and empty frames may follow the data frame; nothing else may.

    Args:
        data: The frame.
        limit: The largest content to allocate, in bytes.

    Raises:
        CodecError: Not a zstd frame, damaged, larger than `limit`, or followed by other data.
    """
    if data[: len(_FRAME_MAGIC)] != _FRAME_MAGIC:
        raise CodecError(
            f"not a zstd frame: the file starts with {data[:4].hex(' ') or 'nothing'}, "
            f"expected {_FRAME_MAGIC.hex(' ')}; it is {describe(data)}"
        )
    try:
        end, capacity = _walk_frame(data, 0)
        content_size = zstandard.frame_content_size(data)
        if content_size > capacity:
            raise CodecError(
                f"the zstd frame declares {content_size} bytes, its blocks hold at most {capacity}"
            )
        # Without a content size the capacity is only an upper bound, so it is cut to the limit
        # and zstd itself refuses to write past the buffer.
        size = min(capacity, limit) if content_size == _UNKNOWN_SIZE else content_size
        if size > limit:
            raise CodecError(f"the zstd frame holds {size} bytes, the limit is {limit}")
        _check_tail(data, end)
        return zstandard.ZstdDecompressor().decompress(
            memoryview(data)[:end], max_output_size=max(size, 1)
        )
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd cannot unpack the frame within {limit} bytes: {error}") from error


def _walk_frame(data: bytes, start: int) -> tuple[int, int]:
    """Returns (offset after the frame, most bytes that its blocks can hold)."""
    header = data[start : start + 18]
    parameters = zstandard.get_frame_parameters(header)
    offset = start + zstandard.frame_header_size(header)
    capacity = blocks = 0
    last = False
    while not last:
        if (blocks := blocks + 1) > _MOST_BLOCKS:
            raise CodecError(f"the zstd frame has more than {_MOST_BLOCKS} blocks")
        block = int.from_bytes(data[offset : offset + _BLOCK_HEADER_BYTES], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        if kind > _COMPRESSED:
            raise CodecError(f"the zstd frame has a block of the reserved type at byte {offset}")
        capacity += _MAX_BLOCK_BYTES if kind == _COMPRESSED else size
        offset += _BLOCK_HEADER_BYTES + (1 if kind == _RLE else size)
        if offset > len(data):
            raise CodecError(f"the zstd frame is truncated: the file ends at byte {len(data)}")
    end = offset + (_CHECKSUM_BYTES if parameters.has_checksum else 0)
    if end > len(data):
        raise CodecError(f"the zstd frame is truncated: the file ends at byte {len(data)}")
    return end, capacity


def _check_tail(data: bytes, offset: int) -> None:
    """Lets skippable and empty frames follow the data frame, as libzstd's one-shot reader does."""
    frames = 0
    while offset < len(data):
        if (frames := frames + 1) > _MOST_FRAMES:
            raise CodecError(f"over {_MOST_FRAMES} skippable or empty frames follow the zstd frame")
        magic = int.from_bytes(data[offset : offset + 4], "little")
        if magic & ~0xF == _SKIPPABLE_MAGIC and offset + 8 <= len(data):
            end = offset + 8 + int.from_bytes(data[offset + 4 : offset + 8], "little")
            capacity = 0
        elif data[offset : offset + 4] == _FRAME_MAGIC:
            end, capacity = _walk_frame(data, offset)
        else:
            raise CodecError(f"{len(data) - offset} unknown bytes after the zstd frame")
        if capacity:
            raise CodecError(f"a second zstd frame with data starts at byte {offset}")
        if end > len(data):
            raise CodecError(f"the skippable frame at byte {offset} is truncated")
        offset = end
