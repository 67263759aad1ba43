"""Picture files, made chunk by chunk where no encoder makes them."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CASES = Path(__file__).parents[1] / "golden" / "cases"
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 4096


def case(name: str) -> bytes:
    return (CASES / name).read_bytes()


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def smooth(width: int, height: int, mode: str = "RGB", blobs: int = 8) -> Image.Image:
    return noise(blobs, blobs, mode).resize((width, height), Image.Resampling.BICUBIC)


def png_chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check


def png(
    size: tuple[int, int],
    depth: int,
    kind: int,
    rows: bytes,
    *chunks: bytes,
    interlaced: bool = False,
    level: int = 6,
) -> bytes:
    """A PNG of unfiltered or filtered rows, with chunks between header and pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows, level))
    return PNG + b"".join([png_chunk(b"IHDR", header), *chunks, pixels, png_chunk(b"IEND", b"")])


def grey_bomb(side: int) -> bytes:
    """A PNG of one bit a pixel: tiny as a file, side * side bytes and more once decoded."""
    return png((side, side), 1, 0, bytes((side // 8 + 1) * side), level=9)


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks put after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments put at its start."""
    parts = [struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments]
    return data[:2] + b"".join(parts) + data[2:]


def riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\x00" * (len(body) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def exif(orientation: int, *, order: str = "<", repeats: int = 1, kind: int = 3) -> bytes:
    """A TIFF structure with the tag of the orientation, stored once or more often."""
    value = struct.pack(f"{order}H2x" if kind == 3 else f"{order}I", orientation)
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    start = struct.pack(f"{order}IH", 8, repeats)
    return mark + start + entry * repeats + bytes(4)


def icc(space: bytes, tags: dict[bytes, bytes], *, pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2.4 for monitors."""
    place, bodies = 132 + 12 * len(tags), b""
    directory = struct.pack(">I", len(tags))
    for name, body in tags.items():
        directory += struct.pack(">4sII", name, place + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i",
        place + len(bodies),
        0x02400000,
        b"mntr",
        space,
        pcs,
        b"acsp",
        63190,
        65536,
        54061,
    )
    return header.ljust(128, b"\x00") + directory + bodies


def gamma_curve(gamma: float) -> bytes:
    return struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ \x00\x00\x00\x00" + struct.pack(">3i", 63190, 65536, 54061)
    return icc(b"GRAY", {b"wtpt": white, b"kTRC": gamma_curve(gamma)})


def ink_profile(grid: int = 5) -> bytes:
    """A CMYK profile whose table says: lightness falls with the ink, and there is no colour."""
    ink = np.stack(np.meshgrid(*[np.linspace(0, 1, grid)] * 4, indexing="ij"), axis=-1).mean(
        axis=-1
    )
    lab = np.stack([(1 - ink) * 0xFF00, np.full_like(ink, 0x8000), np.full_like(ink, 0x8000)], -1)
    ramp = struct.pack(">2H", 0, 0xFFFF)
    one = struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    table = struct.pack(">4s4xBBBx", b"mft2", 4, 3, grid) + one + struct.pack(">2H", 2, 2)
    table += ramp * 4 + lab.astype(">u2").tobytes() + ramp * 3
    return icc(b"CMYK", {b"A2B0": table}, pcs=b"Lab ")


def _rows(width: int, bytes_per_pixel: int, count: int, noisy: int = 0) -> bytes:
    """Rows with Paeth's filter, the slowest one, of which some do not compress."""
    rng = np.random.default_rng(0)
    row = b"\x04" + bytes(width * bytes_per_pixel)
    return b"".join(b"\x04" + rng.bytes(len(row) - 1) for _ in range(noisy)) + row * (count - noisy)


def _interlaced_rows(side: int, bytes_per_pixel: int) -> bytes:
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    return b"".join(
        _rows(-(-(side - left) // across), bytes_per_pixel, -(-(side - top) // down))
        for left, top, across, down in passes
    )


def slow_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan, which changes nothing, in 33 bytes."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True, subsampling=0)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def worst_files() -> Iterator[tuple[str, bytes]]:
    """Files at the limits that cost a decoder most."""
    side, full = LARGEST, (LARGEST, LARGEST)
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        wide = 2 * channels
        yield f"PNG of 16 bits, kind {kind}", png(full, 16, kind, _rows(side, wide, side))
    rows = _interlaced_rows(side, 8)
    yield "interlaced PNG of 16 bits", png(full, 16, 6, rows, interlaced=True)
    noisy = 6 * 2**20 // (side * 8) - 20
    yield "PNG of noise", png(full, 16, 6, _rows(side, 8, side, noisy), level=1)
    text = png_chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(100_000_000), 9))
    profile = png_chunk(b"iCCP", b"a\x00\x00" + zlib.compress(bytes(100_000_000), 9))
    small = encoded(noise(64, 64), "PNG")
    yield "PNG with a bomb in its text", with_chunks(small, text)
    yield "PNG with a bomb in its profile", with_chunks(small, profile)
    yield "PNG with a bomb behind its pixels", png((8, 8), 8, 2, bytes(100_000_000), level=9)
    yield "PNG of many chunks", with_chunks(small, png_chunk(b"tEXt", b"a\x00b") * 16_000)
    picture = smooth(side, side, "RGBA", 256)
    for options in ({"subsampling": 0}, {"subsampling": 2, "progressive": True}):
        yield f"JPEG {options}", encoded(picture.convert("RGB"), "JPEG", quality=88, **options)
    yield (
        "progressive JPEG, no subsampling",
        encoded(picture.convert("RGB"), "JPEG", quality=88, progressive=True, subsampling=0),
    )
    ink = Image.merge("CMYK", picture.split())
    yield (
        "progressive CMYK JPEG with a table",
        encoded(
            ink, "JPEG", quality=50, progressive=True, subsampling=0, icc_profile=ink_profile(17)
        ),
    )
    yield "JPEG of scans that change nothing", slow_jpeg(side, 10)
    yield "JPEG of small scans", slow_jpeg(512, 90)
    yield "JPEG of restarts", encoded(Image.new("L", full), "JPEG", restart_marker_blocks=1)
    stuffed = encoded(noise(64, 64), "JPEG")
    yield "JPEG of stuffed bytes", stuffed[:-2] + b"\xff\x00" * 3_000_000 + stuffed[-2:]
    yield "lossy WebP", encoded(picture.convert("RGB"), "WEBP", quality=80, method=0)
    bits = Image.fromarray(_bits(side)).convert("RGBA")
    yield "lossless WebP", encoded(bits, "WEBP", lossless=True, quality=0, method=0)
    yield "lossless WebP of many codes", lossless_webp(side, 4096)
    frames = [Image.new("RGB", (64, 64), (n, n, n)) for n in range(100)]
    animation = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield "animated WebP", animation
    inner = side - 2
    frame = b"".join(n.to_bytes(3, "little") for n in (1, 1, inner - 1, inner - 1)) + bytes(4)
    canvas = 2 * (side - 1).to_bytes(3, "little")
    cut = Image.fromarray(_bits(inner)).convert("LA").convert("RGBA")
    still = encoded(cut, "WEBP", lossless=True, quality=0, method=0)
    yield (
        "WebP whose first frame is smaller",
        webp(
            riff_chunk(b"VP8X", bytes([2, 0, 0, 0]) + canvas),
            riff_chunk(b"ANIM", bytes(6)),
            riff_chunk(b"ANMF", frame + still[12:]),
        ),
    )


def _bits(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8) * np.uint8(255)


def _prefix_code(symbols: int) -> str:
    """Bits of a code for one symbol, 0, or for 256 symbols of 8 bits each; first bit first."""
    if symbols == 1:
        return "1000"
    lengths = {8: "100", 18: "100"}  # of the code of lengths: 3 bits each, 1 written backwards
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)
    head = "0" + "0001" + "".join(lengths.get(name, "000") for name in order)
    return head + "1" + "110" + f"{254:08b}"[::-1] + "0" * 256


def lossless_stream(side: int, groups: int, tile_bits: int = 4) -> bytes:
    """A lossless WebP stream, without its header, of many groups of prefix codes and one colour."""
    tiles = -(-side >> tile_bits)
    names = [number % groups for number in range(tiles * tiles)]
    tile = [f"{name & 255:08b}{name >> 8:08b}" for name in names]
    bits = "0" + "0" + "1" + f"{tile_bits - 2:03b}"[::-1] + "0"
    bits += _prefix_code(256) * 2 + _prefix_code(1) * 3 + "".join(tile)
    bits += _prefix_code(1) * 5 * groups
    return np.packbits(np.array(list(bits), np.uint8), bitorder="little").tobytes() + bytes(8)


def lossless_webp(side: int, groups: int) -> bytes:
    header = b"\x2f" + (side - 1 | side - 1 << 14).to_bytes(4, "little")
    return webp(riff_chunk(b"VP8L", header + lossless_stream(side, groups)))
