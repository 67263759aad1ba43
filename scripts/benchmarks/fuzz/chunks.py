"""Damaged PNG, JPEG and WebP files: chunks are lost, doubled, moved, lent and lied about.

Bytes in, bytes out; a seed decides. Half of the copies are also changed byte by byte (`mutate`),
and most damaged PNG files get the right check sums again, so that a decoder sees all of the damage.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator

from scripts.benchmarks.fuzz.files import mutate

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 1000


def damaged(data: bytes, count: int, *, seed: int = 0, other: bytes = b"") -> Iterator[bytes]:
    """Yields damaged copies of a file; of any other format, `mutate`d ones.

    Args:
        data: A sound file, not empty.
        count: How many copies.
        seed: Chooses the damage.
        other: A second sound file, whose chunks may be put into the copies.
    """
    for number in range(count):
        yield _damage(data, other or data, seed << 32 | number)


_Change = Callable[[bytes, bytes, random.Random], bytes]


def _damage(data: bytes, other: bytes, seed: int) -> bytes:
    dice = random.Random(seed)
    has_chunks = len(_chunks(data)) > 1
    for _ in range(dice.randint(1, 3) if has_chunks else 0):
        data = dice.choice(_CHANGES)(data, other, dice) or data
    if not has_chunks or dice.random() < 0.5:
        data = mutate(data, seed)
    return _with_check_sums(data) if data.startswith(_PNG) and dice.random() < 0.8 else data


def _lose(data: bytes, other: bytes, dice: random.Random) -> bytes:
    start, end = dice.choice(_chunks(data))
    return data[:start] + data[end:]


def _double(data: bytes, other: bytes, dice: random.Random) -> bytes:
    start, end = dice.choice(_chunks(data))
    return data[:end] + data[start:end] * dice.choice((1, 2, 50)) + data[end:]


def _move(data: bytes, other: bytes, dice: random.Random) -> bytes:
    start, end = dice.choice(_chunks(data))
    rest = data[:start] + data[end:]
    place, _ = dice.choice(_chunks(rest))
    return rest[:place] + data[start:end] + rest[place:]


def _lend(data: bytes, other: bytes, dice: random.Random) -> bytes:
    place, _ = dice.choice(_chunks(data))
    start, end = dice.choice(_chunks(other))
    return data[:place] + other[start:end] + data[place:]


def _change_content(data: bytes, other: bytes, dice: random.Random) -> bytes:
    start, end = dice.choice(_chunks(data))
    content = start + 8 if end - start > 8 else start
    return data[:content] + mutate(data[content:end], dice.getrandbits(32)) + data[end:]


def _lie_about_length(data: bytes, other: bytes, dice: random.Random) -> bytes:
    start, end = dice.choice(_chunks(data))
    jpeg, riff = data.startswith(b"\xff\xd8"), data.startswith(b"RIFF")
    width = 2 if jpeg else 4
    place = start + (2 if jpeg else 4 if riff else 0)
    largest = (1 << 8 * width) - 1
    honest = end - start + dice.choice((-13, -1, 1, 12, 4096))
    number = dice.choice((max(0, min(largest, honest)), 0, largest))
    written = number.to_bytes(width, "little" if riff else "big")
    return data[:place] + written + data[place + width :]


_CHANGES: tuple[_Change, ...] = (_lose, _double, _move, _lend, _change_content, _lie_about_length)


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """Start and end of the chunks as far as they can be told; any other file is one chunk."""
    found: list[tuple[int, int]] = []
    start = 12 if data.startswith(b"RIFF") else 8 if data.startswith(_PNG) else 2
    while start + 12 <= len(data) and len(found) < _MOST_CHUNKS:
        if data.startswith(_PNG):
            length = 12 + int.from_bytes(data[start : start + 4], "big")
        elif data.startswith(b"RIFF"):
            content = int.from_bytes(data[start + 4 : start + 8], "little")
            length = 8 + content + content % 2
        elif data.startswith(b"\xff\xd8") and data[start] == 0xFF:
            length = 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        else:
            break
        found.append((start, min(len(data), start + length)))
        start += length
    return found or [(0, len(data))]


def _with_check_sums(data: bytes) -> bytes:
    parts = [_PNG]
    for start, end in _chunks(data):
        body = data[start + 4 : max(start + 8, end - 4)]
        parts += [struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body))]
    return b"".join(parts)
