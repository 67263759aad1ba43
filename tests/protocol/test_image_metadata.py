"""Metadata that nobody needs can neither fail a picture nor slow it down; orientation counts."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from protocol.errors import TaskError
from protocol.images import ImageLimits, decode_image, read_header
from tests.support.pictures import (
    case,
    encoded,
    exif,
    noise,
    png_chunk,
    riff_chunk,
    smooth,
    webp,
    with_chunks,
    with_segments,
)

PICTURE = smooth(24, 16)
QUARTERS = np.zeros((16, 24, 3), np.uint8)
QUARTERS[:8, :12] = (255, 0, 0)
TURNED = Image.fromarray(QUARTERS)


def _exif_file(format: str, tiff: bytes) -> bytes:
    if format == "PNG":
        return with_chunks(encoded(TURNED, "PNG"), png_chunk(b"eXIf", tiff))
    if format == "JPEG":
        return with_segments(encoded(TURNED, "JPEG", quality=95), (0xE1, b"Exif\x00\x00" + tiff))
    still = encoded(TURNED, "WEBP", lossless=True)
    header = riff_chunk(b"VP8X", bytes([8, 0, 0, 0, 23, 0, 0, 15, 0, 0]))
    return webp(header, still[12:], riff_chunk(b"EXIF", tiff))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(format: str, orientation: int) -> None:
    # The corner of the picture's first row and column, EXIF 2.32, 4.6.5.1.
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)
    for order in "<>":
        found = decode_image(_exif_file(format, exif(orientation, order=order)))
        assert found.size == ((24, 16) if orientation < 5 else (16, 24))
        x, y = 2 if left else found.width - 3, 2 if top else found.height - 3
        red = [
            (corner_x, corner_y)
            for corner_x in (2, found.width - 3)
            for corner_y in (2, found.height - 3)
            if found.getpixel((corner_x, corner_y))[0] > 200  # type: ignore[index]
        ]
        assert red == [(x, y)]


def test_a_tag_stored_twice_counts_once() -> None:
    assert decode_image(case("exif_orientation_twice.jpg")).size == (80, 160)
    assert decode_image(_exif_file("JPEG", exif(6, repeats=40))).size == (16, 24)
    assert decode_image(_exif_file("JPEG", exif(6, kind=4))).size == (16, 24)
    twice = exif(6, repeats=2)
    assert decode_image(_exif_file("JPEG", twice.replace(b"\x06", b"\x63", 1))).size == (16, 24)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"II",
        b"XX*\x00" + bytes(40),
        exif(0),
        exif(9),
        exif(6, kind=4)[:-8],
        exif(6)[:14],
        b"II*\x00\xff\xff\xff\xff" + bytes(30),
        b"MM\x00*" + struct.pack(">IH", 8, 65535) + bytes(60_000),
    ],
)
def test_damaged_exif_leaves_a_picture_as_it_is(format: str, tiff: bytes) -> None:
    assert decode_image(_exif_file(format, tiff)).size == (24, 16)


def test_a_large_profile_does_not_fail_a_picture() -> None:
    assert decode_image(case("icc_profile_1300k.png")).size == (160, 160)


def test_odd_chunks_do_not_fail_a_png() -> None:
    bomb = b"a\x00\x00" + zlib.compress(bytes(70_000_000), 9)
    plain = encoded(PICTURE, "PNG")
    for name, body in (
        (b"zTXt", bomb),
        (b"iTXt", b"a\x00\x01\x00\x00\x00" + zlib.compress(bytes(70_000_000), 9)),
        (b"iCCP", bomb),
        (b"iCCP", b""),
        (b"iCCP", b"\xff" * 90),
        (b"tEXt", bytes(2_000_000)),
        (b"zTXt", b""),
        (b"gAMA", b""),
        (b"cHRM", b"\x00"),
        (b"pHYs", b"\x01"),
        (b"eXIf", b"\xff" * 9),
        (b"acTL", b"\xff" * 8),
        (b"fcTL", b""),
        (b"fdAT", b""),
        (b"tIME", bytes(99)),
        (b"sRGB", b""),
        (b"cICP", b"\xff" * 4),
        (b"ABCD", b"unknown"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = decode_image(with_chunks(plain, png_chunk(name, body)))
        assert (found.tobytes(), caught) == (PICTURE.tobytes(), []), name
    damaged = with_chunks(plain, png_chunk(b"tEXt", b"a\x00b")[:-4] + b"none")
    assert decode_image(damaged).tobytes() == PICTURE.tobytes()


def test_odd_segments_do_not_fail_a_jpeg() -> None:
    plain = encoded(PICTURE, "JPEG", quality=95)
    expected = decode_image(plain).tobytes()
    for marker, body in (
        (0xE0, b"JFXX\x00" + bytes(90)),
        (0xE0, b"JFIF\x00\x01\x01\x01\x00\x00\x00\x00\xff\xff"),
        (0xE1, b"Exif\x00\x00" + b"\xff" * 60_000),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\x00" + bytes(60_000)),
        (0xE2, b"MPF\x00" + bytes(80)),
        (0xE2, b"ICC_PROFILE\x00\x03\x07" + bytes(900)),
        (0xE2, b"ICC_PROFILE\x00"),
        (0xED, b"Photoshop 3.0\x00" + b"\xff" * 300),
        (0xEF, b"\xff\xd8\xff\xda" * 300),
        (0xFE, b"\xff\xda" * 3000),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = decode_image(with_segments(plain, (marker, body)))
        assert (found.tobytes(), caught) == (expected, []), (marker, body[:12])


@pytest.mark.parametrize(
    "stray", [b"\x00", b"stray", b"\xff\xff", b"\x12\xff\x00\x33", b"\xff\xd0"]
)
def test_stray_bytes_between_the_segments_of_a_jpeg_are_passed_over(stray: bytes) -> None:
    plain = encoded(PICTURE, "JPEG")
    place = plain.index(b"\xff\xdb")
    data = plain[:place] + stray + plain[place:]
    assert read_header(data) == read_header(plain)
    assert decode_image(data).tobytes() == decode_image(plain).tobytes()


def test_what_follows_a_picture_is_left_alone() -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        plain = encoded(PICTURE, format)
        expected = decode_image(plain).tobytes()
        for tail in (
            bytes(100),
            bytes(500_000),
            b"\xff" * 4096,
            plain,
            b"\xff\xd8\xff\xe1",
            noise(9, 9).tobytes(),
        ):
            assert decode_image(plain + tail).tobytes() == expected, format


def test_a_second_start_of_a_jpeg_is_left_out() -> None:
    plain = encoded(PICTURE, "JPEG")
    assert decode_image(b"\xff\xd8" + plain).tobytes() == decode_image(plain).tobytes()


def test_a_phone_file_of_two_pictures_gives_the_first() -> None:
    data = encoded(PICTURE, "MPO", save_all=True, append_images=[noise(24, 16)])
    assert decode_image(data).tobytes() == decode_image(encoded(PICTURE, "JPEG")).tobytes()


def test_an_animated_png_gives_its_default_picture() -> None:
    frames = [noise(24, 16), noise(16, 24).resize((24, 16))]
    data = encoded(PICTURE, "PNG", save_all=True, append_images=frames, default_image=True)
    assert decode_image(data).tobytes() == PICTURE.tobytes()


def test_a_first_frame_lies_where_its_animation_puts_it() -> None:
    still = encoded(Image.new("RGB", (8, 8), "red"), "WEBP", lossless=True)
    frame = bytes([2, 0, 0, 1, 0, 0, 7, 0, 0, 7, 0, 0, 100, 0, 0, 0])
    header = riff_chunk(b"VP8X", bytes([2, 0, 0, 0, 31, 0, 0, 15, 0, 0]))
    data = webp(header, riff_chunk(b"ANIM", bytes(6)), riff_chunk(b"ANMF", frame + still[12:]))
    found = decode_image(data)
    assert (found.mode, found.size) == ("RGBA", (32, 16))
    assert found.getbbox() == (4, 2, 12, 10)
    outside = data.replace(frame, bytes([14]) + frame[1:])
    with pytest.raises(TaskError, match="smaller than its own first frame"):
        decode_image(outside)


def test_limits_of_pillow_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    limits = ImageLimits(bytes=10**6, pixels=10**6, side=10**4)
    for format in ("PNG", "JPEG"):
        assert decode_image(encoded(noise(200, 100), format), limits).size == (200, 100)


def test_a_damaged_picture_is_told_from_damaged_metadata() -> None:
    data = bytearray(encoded(noise(64, 64), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(TaskError, match="cannot be decoded as PNG: its IDAT chunk is damaged"):
        decode_image(bytes(data))


def test_the_name_of_a_strange_chunk_is_shown_as_text() -> None:
    with pytest.raises(TaskError, match=r"WebP without a picture \(its first chunk is '\[/x\]'\)"):
        read_header(case("webp_chunk_closing_tag.webp"))
    with pytest.raises(TaskError) as caught:
        read_header(b"RIFF\x00\x00\x00\x00WEBP\x1b[2J" + bytes(30))
    assert str(caught.value).isprintable()


def test_an_apple_png_is_refused_by_its_first_chunk() -> None:
    plain = encoded(PICTURE, "PNG")
    with pytest.raises(TaskError, match="does not begin with IHDR"):
        read_header(plain[:8] + png_chunk(b"CgBI", bytes(4)) + plain[8:])
