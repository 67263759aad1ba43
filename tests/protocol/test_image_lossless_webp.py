"""Lossless WebP pictures of every kind pass; one of too many prefix codes is refused unseen."""

import itertools
import time

import pytest
from PIL import Image

from protocol._vp8l import check_groups
from protocol.errors import TaskError
from protocol.images import decode_image
from tests.support.pictures import (
    encoded,
    lossless_stream,
    lossless_webp,
    noise,
    riff_chunk,
    smooth,
    webp,
)

PICTURES = {
    "smooth": smooth(150, 100, "RGBA", 40),
    "noise": noise(120, 90),
    "many tiles": Image.merge("RGB", noise(700, 500).split()).resize((1400, 1000), 0),
    "40 colours": smooth(160, 120).quantize(40).convert("RGB"),
    "12 colours": smooth(160, 120).quantize(12).convert("RGB"),
    "4 colours": smooth(160, 120).quantize(4).convert("RGB"),
    "2 colours": smooth(161, 120, "L").point(lambda level: 255 * (level > 128)).convert("RGB"),
    "one colour": Image.new("RGB", (77, 55), (9, 90, 200)),
    "one pixel": Image.new("RGBA", (1, 1), (9, 90, 200, 30)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_an_encoder_writes_is_read(name: str) -> None:
    picture = PICTURES[name]
    methods = (0, 3) if picture.width > 1000 else range(7)
    for method, quality in itertools.product(methods, (0, 100)):
        data = encoded(picture, "WEBP", lossless=True, method=method, quality=quality, exact=True)
        found = decode_image(data).convert(picture.mode)
        assert found.tobytes() == picture.tobytes(), (method, quality)


@pytest.mark.parametrize("alpha_quality", [0, 60, 100])
def test_the_alpha_of_a_lossy_picture_is_read(alpha_quality: int) -> None:
    picture = smooth(90, 60, "RGBA", 40)
    for method in range(7):
        data = encoded(picture, "WEBP", quality=70, method=method, alpha_quality=alpha_quality)
        assert b"ALPH" in data
        assert decode_image(data).mode == "RGBA"


def test_groups_of_codes_are_counted_before_a_decoder_builds_them() -> None:
    assert decode_image(lossless_webp(1024, 4096)).getpixel((0, 0)) == (0, 0, 0)
    started = time.thread_time()
    with pytest.raises(TaskError, match="65536 groups of prefix codes, the limit is 4096"):
        decode_image(lossless_webp(4096, 65_536))
    assert time.thread_time() - started < 1.5  # most of it makes the file


def test_groups_of_an_alpha_channel_count_too() -> None:
    lossy = encoded(smooth(1024, 1024), "WEBP")
    header = riff_chunk(b"VP8X", bytes([0x10, 0, 0, 0, 255, 3, 0, 255, 3, 0]))
    alpha = riff_chunk(b"ALPH", b"\x01" + lossless_stream(1024, 4097, 3))
    with pytest.raises(TaskError, match="4097 groups of prefix codes"):
        decode_image(webp(header, alpha, lossy[12:]))


def test_a_stream_of_endless_small_pictures_is_given_up() -> None:
    # Tiles of 4 x 4 pixels at 8192 x 2048: a million, in two bytes.
    with pytest.raises(TaskError, match="more than 524288 tiles"):
        check_groups(bytes([0b00001, 0]) + bytes(100), 8192, 2048)


@pytest.mark.parametrize("stream", [b"", b"\xff" * 40, b"\x05" * 40, bytes([0b101]) + b"\xff" * 99])
def test_a_damaged_stream_is_refused(stream: bytes) -> None:
    header = b"\x2f" + (63 | 63 << 14).to_bytes(4, "little")
    with pytest.raises(TaskError):
        decode_image(webp(riff_chunk(b"VP8L", header + stream)))
