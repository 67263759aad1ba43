import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protocol.errors import TaskError
from protocol.images import ImageHeader, ImageLimits, decode_image, read_header
from tests.support.pictures import encoded, grey_bomb, noise

SIZES = [(1, 1), (3, 2), (64, 48), (300, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_the_header_gives_format_and_size(
    size: tuple[int, int], format: str, options: dict[str, object]
) -> None:
    data = encoded(noise(*size), format, **options)
    assert read_header(data) == ImageHeader(format, *size)
    assert decode_image(data).size == size


def test_an_extended_webp_gives_its_canvas() -> None:
    data = encoded(noise(40, 30, "RGBA"), "WEBP", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08")
    assert data[12:16] == b"VP8X"
    assert read_header(data) == ImageHeader("WEBP", 40, 30)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA")]
)
def test_transparency_is_kept_and_everything_else_becomes_rgb(mode: str, expected: str) -> None:
    assert decode_image(encoded(noise(6, 5, mode), "PNG")).mode == expected


def test_a_palette_with_a_transparent_colour_becomes_rgba() -> None:
    image = noise(6, 5).convert("P")
    assert decode_image(encoded(image, "PNG", transparency=0)).mode == "RGBA"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype=np.uint16))
    decoded = np.asarray(decode_image(encoded(grey, "PNG")))
    assert decoded[0, :, 0].tolist() == [0, 64, 255]


def test_a_photograph_held_sideways_comes_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(noise(8, 4), "JPEG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize("side", [5000, 13_000, 60_000])
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    bomb = grey_bomb(side) if side < 60_000 else grey_bomb(8)[:16] + struct.pack(">II", side, side)
    assert len(bomb) < 40_000
    with pytest.raises(TaskError, match=f"{side} x {side} pixels, the limit is"):
        decode_image(bomb)


def test_every_limit_is_the_last_size_that_passes() -> None:
    limits = ImageLimits(bytes=10_000, pixels=12, side=6)
    for size in ((4, 3), (6, 2)):
        read_header(encoded(noise(*size), "PNG"), limits)
    for size in ((13, 1), (7, 1), (4, 4)):
        with pytest.raises(TaskError, match="the limit is 12 pixels and 6 a side"):
            read_header(encoded(noise(*size), "PNG"), limits)
    with pytest.raises(TaskError, match="10001 bytes, the limit is 10000"):
        read_header(bytes(10_001), limits)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"GIF89a" + bytes(20), b"BM" + bytes(60), b"<svg></svg>"]
)
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(TaskError, match="neither PNG, JPEG nor WebP"):
        decode_image(data)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data[:-2] + last_scan * 20 + data[-2:]).size == (64, 64)
    with pytest.raises(TaskError, match=r"JPEG of 10.. scans, the limit is 100"):
        decode_image(data[:-2] + last_scan * 1000 + data[-2:])


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xd0", b"\xff\xe0\x00\x02"])
def test_a_jpeg_of_empty_segments_is_given_up_early(filler: bytes) -> None:
    data = b"\xff\xd8\xff\xe0\x00\x02" + filler * 100_000
    with pytest.raises(TaskError, match="without a size in its first 4096 segments"):
        read_header(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_anywhere_is_refused(format: str) -> None:
    data = encoded(noise(64, 48), format, **({"quality": 95} if format == "JPEG" else {}))
    for length in range(0, len(data) - 40, max(1, len(data) // 60)):
        with pytest.raises(TaskError):
            decode_image(data[:length])


@settings(max_examples=200)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(
    format: str, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(noise(24, 16), format))
    for position, value in damage:
        data[position % len(data)] = value
    with suppress(TaskError):
        assert decode_image(bytes(data)).mode in ("RGB", "RGBA")
