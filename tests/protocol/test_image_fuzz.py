"""Pictures of any size and orientation are read; damaged profiles never cost the picture."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.images import ImageHeader, decode_image, read_header
from scripts.benchmarks.fuzz.chunks import damaged
from tests.support.decoding import decode_all
from tests.support.pictures import case, encoded, exif, ink_profile, smooth, with_segments

COPIES = 250


def test_damaged_profiles_never_cost_the_picture() -> None:
    picture = encoded(smooth(32, 24, "CMYK"), "JPEG")
    profiles = damaged(ink_profile(), COPIES, other=case("wide_gamut_a.png")[60:])
    results = decode_all(
        with_segments(picture, (0xE2, b"ICC_PROFILE\x00\x01\x01" + profile[:60_000]))
        for profile in profiles
    )
    assert {result.outcome for result in results} == {"RGB"}
    assert max(result.cpu_s for result in results) < 1.0


@settings(max_examples=60)
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
