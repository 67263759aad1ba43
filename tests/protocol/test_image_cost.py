"""Every file within the limits decodes in a second of one core and 300 MB; the rest is refused."""

import time

import pytest

from protocol.errors import TaskError
from protocol.images import decode_image, read_header
from tests.support.decoding import decode_all
from tests.support.pictures import (
    encoded,
    noise,
    png_chunk,
    riff_chunk,
    slow_jpeg,
    webp,
    with_chunks,
    with_segments,
    worst_files,
)

SECONDS, MEGABYTES = 1.0, 300.0


@pytest.fixture(scope="module")
def worst() -> dict[str, bytes]:
    return dict(worst_files())


@pytest.mark.parametrize("side", [None, 1024])
def test_the_worst_files_are_affordable(worst: dict[str, bytes], side: int | None) -> None:
    # Only a network's input is made of an image prompt, so nobody decodes it larger than that.
    names = [name for name in worst if side is not None or "CMYK" not in name]
    for name, found in zip(
        names, decode_all((worst[name] for name in names), side=side), strict=True
    ):
        assert found.outcome in ("RGB", "RGBA"), (name, found)
        assert found.cpu_s < SECONDS, (name, found)
        assert found.peak_mb < MEGABYTES, (name, found)


def test_scans_are_counted_by_what_they_visit() -> None:
    assert decode_image(slow_jpeg(1024, 60)).size == (1024, 1024)
    with pytest.raises(TaskError, match="scans visit 570425344 samples, the limit is 402653184"):
        read_header(slow_jpeg(4096, 20))


def test_too_many_chunks_are_refused_at_the_door() -> None:
    small = encoded(noise(8, 8), "PNG")
    filler = png_chunk(b"tEXt", b"a\x00b")
    with pytest.raises(TaskError, match="PNG of more than 16384 chunks"):
        read_header(with_chunks(small, filler * 350_000))
    still = encoded(noise(8, 8), "WEBP", exif=b"Exif\x00\x00")
    with pytest.raises(TaskError, match="WebP of more than 16384 chunks"):
        read_header(webp(still[12:], riff_chunk(b"junk", b"") * 500_000))
    photo = encoded(noise(8, 8), "JPEG")
    with pytest.raises(TaskError, match="JPEG with more than 4096 segments"):
        read_header(photo[:-2] + b"\xff\xfe\x00\x02" * 1_500_000 + photo[-2:])


def test_kinds_of_jpeg_that_no_browser_shows_are_refused_by_name() -> None:
    data = encoded(noise(16, 16), "JPEG")
    for marker in (0xC3, 0xC5, 0xC9, 0xCA):
        with pytest.raises(TaskError, match="lossless, hierarchical or arithmetic-coded"):
            read_header(data.replace(b"\xff\xc0", bytes([0xFF, marker]), 1))


def test_reading_the_header_of_a_hostile_file_is_quick(worst: dict[str, bytes]) -> None:
    large = with_segments(
        encoded(noise(64, 64), "JPEG"), *[(0xED, bytes(65_533))] * 90, (0xE1, b"Exif\x00\x00")
    )
    for name, data in (*worst.items(), ("JPEG of segments", large)):
        started = time.thread_time()
        read_header(data)
        assert time.thread_time() - started < 0.2, name


def test_a_frame_that_is_larger_than_its_picture_takes_no_memory() -> None:
    still = encoded(noise(16, 16), "WEBP")
    place = still.index(b"\x9d\x01\x2a") + 3
    huge = still[12:place] + b"\xff\x3f\xff\x3f" + still[place + 4 :]  # 16383 x 16383
    small = riff_chunk(b"VP8X", bytes([0, 0, 0, 0, 15, 0, 0, 15, 0, 0]))
    (found,) = decode_all([webp(small, huge)])
    assert found.message == "image is smaller than its own first frame; send a sound file"
    assert found.peak_mb < 10
