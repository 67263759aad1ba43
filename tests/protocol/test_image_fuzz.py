"""Damaged pictures end in a picture or in TaskError, and cost no more than sound ones."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.images import ImageHeader, decode_image, read_header
from scripts.benchmarks.fuzz.chunks import damaged
from tests.support.decoding import Decoding, decode_all
from tests.support.pictures import case, encoded, exif, ink_profile, smooth, with_segments

COPIES = 500


def _files(format: str) -> tuple[bytes, bytes]:
    """A sound file with metadata, and another of the same format."""
    picture = smooth(72, 48, "RGBA")
    if format == "PNG":
        return case("wide_gamut_a.png"), encoded(picture.convert("P"), "PNG", exif=exif(6))
    if format == "JPEG":
        profile = ink_profile()
        return (
            encoded(picture.convert("CMYK"), "JPEG", progressive=True, icc_profile=profile),
            encoded(picture.convert("RGB"), "JPEG", exif=b"Exif\x00\x00" + exif(3)),
        )
    frames = [picture.rotate(90), picture.rotate(180)]
    return (
        encoded(picture, "WEBP", lossless=True, exif=b"Exif\x00\x00" + exif(8)),
        encoded(picture, "WEBP", save_all=True, append_images=frames),
    )


def _check(results: list[Decoding]) -> None:
    outcomes = Counter(result.outcome for result in results)
    assert outcomes.keys() <= {"RGB", "RGBA", "refused"}, outcomes
    assert len(outcomes) > 1
    assert max(result.cpu_s for result in results) < 1.0
    assert max(result.peak_mb for result in results) < 300.0
    assert all(len(result.message) < 300 and result.message.isprintable() for result in results)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_decoded_or_refused_within_the_bounds(format: str) -> None:
    one, two = _files(format)

    def copies() -> Iterator[bytes]:
        yield from damaged(one, COPIES // 2, seed=1, other=two)
        yield from damaged(two, COPIES // 2, seed=2, other=one)

    _check(decode_all(copies(), side=1024))


def test_damaged_profiles_never_cost_the_picture() -> None:
    picture = encoded(smooth(32, 24, "CMYK"), "JPEG")
    profiles = damaged(ink_profile(), COPIES // 2, other=case("wide_gamut_a.png")[60:])
    results = decode_all(
        with_segments(picture, (0xE2, b"ICC_PROFILE\x00\x01\x01" + profile[:60_000]))
        for profile in profiles
    )
    assert {result.outcome for result in results} == {"RGB"}
    assert max(result.cpu_s for result in results) < 1.0


def test_the_damage_is_the_same_for_the_same_seed() -> None:
    data = case("grey16.png")
    assert list(damaged(data, 20, seed=3)) == list(damaged(data, 20, seed=3))
    assert len(set(damaged(data, 200, seed=3)) - {data}) > 150


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["RGB", "RGBA", "L"]),
    st.integers(1, 8),
    st.integers(1, 60),
)
def test_size_and_orientation_of_any_picture(
    format: str, width: int, height: int, mode: str, orientation: int, side: int
) -> None:
    picture = smooth(width, height, mode)
    if format == "JPEG":
        picture = picture.convert("RGB")
    tag = exif(orientation) if format == "PNG" else b"Exif\x00\x00" + exif(orientation)
    data = encoded(picture, format, exif=tag)
    assert read_header(data) == ImageHeader(format, width, height)
    turned = (height, width) if orientation >= 5 else (width, height)
    assert decode_image(data).size == turned
    small = decode_image(data, side=side)
    assert max(small.size) == min(side, max(turned))
