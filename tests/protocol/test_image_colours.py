"""Colours come out in sRGB, whatever space, depth and kind of pixel the file has."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from protocol._icc import Primaries, matrix_profile
from protocol.images import decode_image
from tests.support.decoding import decode_all
from tests.support.pictures import (
    case,
    encoded,
    grey_profile,
    ink_profile,
    noise,
    png,
    png_chunk,
    riff_chunk,
    smooth,
    webp,
    with_chunks,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def profile_of(name: str) -> bytes:
    data = case(name)
    place = data.index(b"iCCP")
    (length,) = struct.unpack(">I", data[place - 4 : place])
    return zlib.decompress(data[place + 4 : place + 4 + length].partition(b"\x00")[2][1:])


WIDE = profile_of("wide_gamut_a.png")


def middle(data: bytes) -> tuple[int, ...]:
    picture = decode_image(data)
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


def near(found: tuple[int, ...], expected: tuple[int, ...], levels: int = 2) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= levels


def test_a_wide_gamut_becomes_srgb() -> None:
    assert near(middle(case("wide_gamut_a.png")), (29, 150, 60))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_every_format_carries_its_profile(format: str) -> None:
    flat = Image.new("RGB", (32, 32), (88, 149, 69))
    options = {} if format == "PNG" else {"quality": 100}
    assert near(middle(encoded(flat, format, icc_profile=WIDE, **options)), (29, 150, 60), 5)
    assert near(middle(encoded(flat, format, **options)), (88, 149, 69), 2)


def test_transparency_and_palettes_keep_their_profile() -> None:
    flat = Image.new("RGBA", (8, 8), (88, 149, 69, 77))
    assert near(middle(encoded(flat, "PNG", icc_profile=WIDE)), (29, 150, 60, 77))
    palette = flat.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    assert near(middle(encoded(palette, "PNG", icc_profile=WIDE)), (29, 150, 60), 4)


def test_an_srgb_profile_changes_no_pixel() -> None:
    picture = noise(64, 48)
    rounded = matrix_profile(
        Primaries((0.3127, 0.329), (0.6405, 0.33), (0.3, 0.6), (0.15, 0.06)), None
    )
    for profile in (SRGB, rounded):
        found = decode_image(encoded(picture, "PNG", icc_profile=profile))
        assert found.tobytes() == picture.tobytes()


def test_a_profile_that_is_large_is_read_and_one_that_is_useless_ignored() -> None:
    assert near(middle(case("icc_profile_1300k.png")), (200, 30, 30))
    flat = Image.new("RGB", (8, 8), (88, 149, 69))
    for profile in (
        b"",
        b"no profile",
        WIDE[:200],
        WIDE[:128] + b"\xff\xff\xff\xff" + WIDE[132:],
        LAB,
        ink_profile(),
        grey_profile(1.0),
        WIDE + bytes(5_000_000),
        WIDE.replace(b"acsp", b"none"),
    ):
        assert middle(encoded(flat, "PNG", icc_profile=profile)) == (88, 149, 69)


def test_junk_in_a_profile_does_not_keep_it_from_being_used() -> None:
    flat = Image.new("RGB", (8, 8), (88, 149, 69))
    junk = WIDE + bytes(2_000_000)
    assert near(middle(encoded(flat, "PNG", icc_profile=junk)), (29, 150, 60))


def test_a_grey_profile_lightens_grey() -> None:
    linear = grey_profile(1.0)
    assert near(middle(encoded(Image.new("L", (8, 8), 55), "PNG", icc_profile=linear)), (128,) * 3)
    faded = Image.new("LA", (8, 8), (55, 90))
    assert near(middle(encoded(faded, "PNG", icc_profile=linear)), (128, 128, 128, 90))
    palette = Image.new("L", (8, 8), 55).convert("P")
    assert near(middle(encoded(palette, "PNG", icc_profile=linear)), (128,) * 3)
    chunk = png_chunk(b"iCCP", b"a\x00\x00" + zlib.compress(linear))
    row = b"\x00" + struct.pack(">HH", 55 * 257, 90 * 257)
    assert near(middle(png((1, 1), 16, 4, row, chunk)), (128, 128, 128, 90))


def test_a_grey_picture_may_have_a_profile_for_colour() -> None:
    found = middle(encoded(Image.new("L", (8, 8), 90), "PNG", icc_profile=WIDE))
    assert near(found, (found[0],) * 3)


def test_ink_goes_through_its_profile_or_the_plain_formula() -> None:
    flat = Image.new("CMYK", (16, 16), (255, 255, 255, 0))
    by_table = middle(encoded(flat, "JPEG", quality=100, icc_profile=ink_profile()))
    assert near(by_table, (by_table[0],) * 3)
    assert 40 < by_table[0] < 80  # three of four inks: L* 25
    assert near(middle(encoded(flat, "JPEG", quality=100)), (0, 0, 0), 3)
    damaged = ink_profile().replace(b"mft2", b"none")
    assert near(middle(encoded(flat, "JPEG", quality=100, icc_profile=damaged)), (0, 0, 0), 3)


def test_a_table_that_claims_more_than_it_has_takes_no_memory() -> None:
    profile = ink_profile(5)
    place = profile.index(b"mft2") + 10
    huge = profile[:place] + bytes([60]) + profile[place + 1 :]  # 78 MB
    flat = Image.new("CMYK", (16, 16), (255, 255, 255, 0))
    data = encoded(flat, "JPEG", quality=100, icc_profile=huge)
    assert near(middle(data), (0, 0, 0), 3)
    (found,) = decode_all([data])
    assert found.peak_mb < 10


def _chunked(*chunks: tuple[bytes, bytes], colour: tuple[int, int, int] = (88, 149, 69)) -> bytes:
    plain = encoded(Image.new("RGB", (8, 8), colour), "PNG")
    return with_chunks(plain, *(png_chunk(name, body) for name, body in chunks))


def test_gamma_and_chromaticities_of_a_png_count_where_it_has_no_profile() -> None:
    linear, usual = struct.pack(">I", 100_000), struct.pack(">I", 45_455)
    grey = (55, 55, 55)
    assert near(middle(_chunked((b"gAMA", linear), colour=grey)), (128,) * 3)
    assert middle(_chunked((b"gAMA", usual), colour=grey)) == grey
    assert middle(_chunked((b"sRGB", b"\x00"), (b"gAMA", linear), colour=grey)) == grey
    for useless in (b"", bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01"):
        assert middle(_chunked((b"gAMA", useless), colour=grey)) == grey
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    assert middle(_chunked((b"cHRM", srgb))) == (88, 149, 69)
    # By the matrix from Display P3 to sRGB of CSS Color 4, section 18.
    assert near(middle(_chunked((b"cHRM", p3))), (64, 151, 56))
    for useless in (b"", bytes(32), b"\xff" * 32):
        assert middle(_chunked((b"cHRM", useless))) == (88, 149, 69)


def test_coded_colour_spaces_come_before_a_profile_and_hdr_falls_back() -> None:
    assert near(middle(_chunked((b"cICP", bytes([12, 13, 0, 1])))), (64, 151, 56))
    assert middle(_chunked((b"cICP", bytes([1, 13, 0, 1])))) == (88, 149, 69)
    for transfer in (16, 18):  # PQ and HLG
        assert middle(_chunked((b"cICP", bytes([9, transfer, 0, 1])))) == (88, 149, 69)


def test_sixteen_bits_are_scaled_to_eight_in_every_kind_of_png() -> None:
    assert middle(case("grey16.png")) == (81, 81, 81)
    level = struct.pack(">H", 20817)
    for kind, pixel in ((0, level), (2, level * 3), (4, level * 2), (6, level * 4)):
        for interlaced in (False, True):
            picture = decode_image(png((1, 1), 16, kind, b"\x00" + pixel, interlaced=interlaced))
            assert picture.getpixel((0, 0)) == (81,) * (3 if kind in (0, 2) else 4)


def test_few_bits_are_scaled_to_eight() -> None:
    for depth in (1, 2, 4, 8):
        largest = (1 << depth) - 1
        row = bytes([0, 255])
        assert decode_image(png((1, 1), depth, 0, row)).getpixel((0, 0)) == (255, 255, 255)
        transparent = png_chunk(b"tRNS", struct.pack(">H", largest))
        for byte, alpha in ((255, 0), (0, 255)):
            picture = decode_image(png((1, 1), depth, 0, bytes([0, byte]), transparent))
            assert picture.getpixel((0, 0)) == (byte, byte, byte, alpha)


def test_a_transparent_colour_of_sixteen_bits_is_found() -> None:
    for kind, channels in ((0, 1), (2, 3)):
        key = struct.pack(">H", 20817) * channels
        rows = b"\x00" + key + struct.pack(">H", 30000) * channels
        picture = decode_image(png((2, 1), 16, kind, rows, png_chunk(b"tRNS", key)))
        alpha = np.asarray(picture.getchannel("A"))
        assert alpha.tolist() == [[0, 255]]


def test_a_webp_profile_is_read_from_its_chunk() -> None:
    flat = encoded(Image.new("RGB", (8, 8), (88, 149, 69)), "WEBP", lossless=True)
    header = riff_chunk(b"VP8X", bytes([0x20, 0, 0, 0, 7, 0, 0, 7, 0, 0]))
    data = webp(header, riff_chunk(b"ICCP", WIDE), flat[12:])
    assert near(middle(data), (29, 150, 60))


def test_scaling_down_keeps_colours() -> None:
    picture = smooth(800, 600)
    data = encoded(picture, "PNG", icc_profile=WIDE)
    whole = np.asarray(decode_image(data).resize((100, 75), Image.Resampling.BOX), np.int16)
    small = np.asarray(decode_image(data, side=100), np.int16)
    assert np.abs(whole - small).mean() < 1.5
