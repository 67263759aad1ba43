"""How many prefix codes a lossless WebP stream (RFC 9649, section 3) makes a decoder build.

A picture may be split into tiles with 65,536 groups of five codes. A group takes 20 bits of a file
and 12 KB of a decoder, so a file of 300 KB could take 800 MB. Encoders write some hundred groups.
The groups are named in a small picture that comes before the pixels, after other small pictures;
these are decoded here, as far as it takes to find the end of each and the groups.
"""

from protocol.errors import TaskError

MAX_GROUPS = 4096
MAX_SMALL_PIXELS = 2**19
"""Pixels of all small pictures that are worth reading here, in a third of a second. libwebp needs
130,000 for a picture of 4096 x 4096 at its slowest setting."""

_PREDICTOR, _COLOUR, _GREEN, _PALETTE = range(4)
_LITERALS, _LENGTHS = 256, 24
_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_LONGEST = 15
_REFILL = 64

_Table = tuple[int, list[tuple[int, int]]]
"""The bits to look at, and for each of their values the symbol and its length."""


def check_groups(stream: bytes, width: int, height: int) -> None:
    """Refuses a stream with too many groups of prefix codes.

    Args:
        stream: What follows the header of a `VP8L` chunk, or the first byte of an `ALPH` chunk.
        width: Pixels.
        height: Pixels.

    Raises:
        TaskError: Too many groups, or the stream is damaged before they are known.
    """
    bits = _Bits(stream)
    seen: set[int] = set()
    while bits.read(1):
        kind = bits.read(2)
        if kind in seen:
            raise _damaged()
        seen.add(kind)
        if kind in (_PREDICTOR, _COLOUR):
            _small_picture(bits, *_tiles(width, height, bits.read(3) + 2))
        elif kind == _PALETTE:
            colours = bits.read(8) + 1
            _small_picture(bits, colours, 1)
            packed = 3 if colours <= 2 else 2 if colours <= 4 else 1 if colours <= 16 else 0
            width = -(-width >> packed)
    if bits.read(1):
        bits.read(4)
    if not bits.read(1):
        return
    groups = _small_picture(bits, *_tiles(width, height, bits.read(3) + 2))
    if groups > MAX_GROUPS:
        raise TaskError(
            f"image is a lossless WebP of {groups} groups of prefix codes, the limit is "
            f"{MAX_GROUPS}; save it as PNG"
        )


class _Bits:
    """Bits of a stream, the least significant of each byte first; zeros after its end."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._place = 0
        self._held = 0
        self._count = 0
        self.pixels_left = MAX_SMALL_PIXELS

    def read(self, count: int) -> int:
        if self._count < count:
            self._refill()
        value = self._held & (1 << count) - 1
        self._held >>= count
        self._count -= count
        return value

    def symbol(self, table: _Table) -> int:
        if self._count < _LONGEST:
            self._refill()
        width, entries = table
        symbol, length = entries[self._held & (1 << width) - 1]
        self._held >>= length
        self._count -= length
        return symbol

    def _refill(self) -> None:
        piece = self._stream[self._place : self._place + _REFILL]
        if not piece and self._place > len(self._stream):
            raise _damaged()
        self._place += _REFILL
        self._held |= int.from_bytes(piece, "little") << self._count
        self._count += 8 * _REFILL


def _small_picture(bits: _Bits, width: int, height: int) -> int:
    """Passes over an entropy-coded image; returns how many values of red and green it can hold.

    Copies only repeat what was there before, so the pixels that are written out are all that count.
    """
    bits.pixels_left -= width * height
    if bits.pixels_left < 0:
        raise TaskError(
            f"image is a lossless WebP with more than {MAX_SMALL_PIXELS} tiles; save it as PNG"
        )
    cache = 0
    if bits.read(1):
        cache_bits = bits.read(4)
        if not 1 <= cache_bits <= 11:
            raise _damaged()
        cache = 1 << cache_bits
    green, red, blue, alpha, distance = (
        _code(bits, size) for size in (_LITERALS + _LENGTHS + cache, 256, 256, 256, 40)
    )
    values = set()
    left = width * height
    symbol = bits.symbol
    while left > 0:
        value = symbol(green)
        if value < _LITERALS:
            values.add(symbol(red) << 8 | value)
            symbol(blue)
            symbol(alpha)
            left -= 1
        elif value < _LITERALS + _LENGTHS:
            left -= _prefixed(bits, value - _LITERALS)
            _prefixed(bits, symbol(distance))
        else:
            left -= 1
    return len(values)


def _prefixed(bits: _Bits, prefix: int) -> int:
    """A length or distance: its prefix, and the bits that the prefix asks for."""
    if prefix < 4:
        return prefix + 1
    extra = prefix - 2 >> 1
    return (2 + (prefix & 1) << extra) + bits.read(extra) + 1


def _code(bits: _Bits, size: int) -> _Table:
    """Reads a prefix code of an alphabet."""
    if bits.read(1):
        two, wide = bits.read(1), bits.read(1)
        symbols = [bits.read(8 if wide else 1)]
        if two:
            symbols.append(bits.read(8))
        return _table(dict.fromkeys(symbols, 1))
    counts = [bits.read(3) for _ in range(bits.read(4) + 4)]
    order = _LENGTH_ORDER[: len(counts)]
    of_lengths = _table({name: n for name, n in zip(order, counts, strict=True) if n})
    left = 2 + bits.read(2 + 2 * bits.read(3)) if bits.read(1) else size
    lengths: dict[int, int] = {}
    place, previous = 0, 8
    while place < size and left > 0:
        left -= 1
        symbol = bits.symbol(of_lengths)
        run, length = 1, symbol
        if symbol == 16:
            run, length = 3 + bits.read(2), previous
        elif symbol > 16:
            run, length = (3 + bits.read(3) if symbol == 17 else 11 + bits.read(7)), 0
        elif symbol:
            previous = symbol
        if place + run > size:
            raise _damaged()
        if length:
            lengths |= dict.fromkeys(range(place, place + run), length)
        place += run
    return _table(lengths)


def _table(lengths: dict[int, int]) -> _Table:
    """The table of a canonical prefix code; a symbol that is alone takes no bits."""
    if len(lengths) == 1:
        return 0, [(next(iter(lengths)), 0)]
    width = max(lengths.values(), default=0)
    if sum(1 << width - length for length in lengths.values()) != 1 << width or not lengths:
        raise _damaged()
    entries = [(0, 0)] * (1 << width)
    code, before = 0, 0
    for symbol, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code <<= length - before
        before = length
        first = int(f"{code:0{length}b}"[::-1], 2)
        entries[first :: 1 << length] = [(symbol, length)] * (1 << width - length)
        code += 1
    return width, entries


def _tiles(width: int, height: int, bits: int) -> tuple[int, int]:
    return -(-width >> bits), -(-height >> bits)


def _damaged() -> TaskError:
    return TaskError("image cannot be decoded as WEBP: its codes are damaged; send a sound file")
