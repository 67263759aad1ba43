"""Bad SPZ input raises CodecError: it never crashes, wraps, or allocates past the cap."""

import contextlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import spz
from protocol.errors import CodecError
from tests.protocol.codec_data import (
    assert_same,
    golden,
    golden_cloud,
    one_gaussian,
    refused_with_peak,
)

PAYLOAD = golden("small.raw.bin")
FRAME = golden("small.spz")
EXPECTED = spz.decode(FRAME)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"
EMPTY_FRAME = zstandard.ZstdCompressor().compress(b"")
MEBIBYTE = 1 << 20


def packed(
    payload: bytes, *, level: int = 1, content_size: bool = True, checksum: bool = False
) -> bytes:
    compressor = zstandard.ZstdCompressor(
        level=level, write_content_size=content_size, write_checksum=checksum
    )
    return compressor.compress(payload)


def header(
    *,
    magic: int = 0x5053474E,
    version: int = 2,
    count: int = 500,
    degree: int = 0,
    bits: int = 12,
    flags: int = 0,
    reserved: int = 0,
) -> bytes:
    return struct.pack("<IIIBBBB", magic, version, count, degree, bits, flags, reserved)


def declaring(content_size: int, *, blocks: bytes) -> bytes:
    """A frame whose header claims `content_size`: 8-byte size field, window of 512 KiB."""
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([0b1100_0000, 9 << 3])
        + struct.pack("<Q", content_size)
        + blocks
    )


def zeros(count: int) -> bytes:
    """A frame of a header claiming `count` Gaussians and the zeros that they take."""
    return packed(header(count=count) + bytes(19 * count))


ACCEPTED = {
    "fast negative level": packed(PAYLOAD, level=-5),
    "level 19": packed(PAYLOAD, level=19),
    "checksum": packed(PAYLOAD, checksum=True),
    "no content size": packed(PAYLOAD, content_size=False),
    "no content size, checksum": packed(PAYLOAD, content_size=False, checksum=True),
    "window of 2 GiB": b"\x28\xb5\x2f\xfd"
    + bytes([0b1000_0000, 21 << 3])
    + struct.pack("<I", len(PAYLOAD))
    + (len(PAYLOAD) << 3 | 1).to_bytes(3, "little")
    + PAYLOAD,
    "skippable frame after": FRAME + SKIPPABLE,
    "empty frame after": FRAME + EMPTY_FRAME,
    "both after": FRAME + SKIPPABLE + EMPTY_FRAME + SKIPPABLE,
    "surplus payload": packed(PAYLOAD + bytes(100)),
    "reserved byte and flags set": packed(header(flags=255, reserved=7) + PAYLOAD[16:]),
}

REFUSED = {
    "nothing": b"",
    "four bytes": FRAME[:4],
    "frame header only": FRAME[:8],
    "bare payload": PAYLOAD,
    "gzip": b"\x1f\x8b\x08\x00" + FRAME,
    "skippable frame before": SKIPPABLE + FRAME,
    "two frames": packed(PAYLOAD[:5000]) + packed(PAYLOAD[5000:]),
    "the same frame twice": FRAME + FRAME,
    "trailing garbage": FRAME + b"garbage",
    "trailing zero": FRAME + b"\x00",
    "truncated skippable frame after": FRAME + SKIPPABLE[:-1],
    "truncated by one byte": FRAME[:-1],
    "truncated in half": FRAME[: len(FRAME) // 2],
    "truncated checksum": packed(PAYLOAD, checksum=True)[:-1],
    "wrong checksum": packed(PAYLOAD, checksum=True)[:-1] + b"\x00",
    "content size too small": declaring(9515, blocks=packed(PAYLOAD)[7:]),
    "content size too large": declaring(9517, blocks=packed(PAYLOAD)[7:]),
    "content size of 1 TiB": declaring(1 << 40, blocks=packed(PAYLOAD)[7:]),
    "content size of 2^64 - 1": declaring((1 << 64) - 1, blocks=b"\x01\x00\x00"),
    "reserved block type": b"\x28\xb5\x2f\xfd\x20\x10\x07\x00\x00",
    "empty frame": EMPTY_FRAME,
    "header short": packed(PAYLOAD[:15]),
    "header only": packed(PAYLOAD[:16]),
    "payload one byte short": packed(PAYLOAD[:-1]),
    "one Gaussian too many": packed(header(count=501) + PAYLOAD[16:]),
    "SH missing": packed(header(degree=3) + PAYLOAD[16:]),
    "no Gaussians": packed(header(count=0)),
    "too many Gaussians": packed(header(count=10_000_001) + bytes(1000)),
    "4 billion Gaussians": packed(header(count=0xFFFFFFFF) + PAYLOAD[16:]),
    "wrong magic": packed(header(magic=0x5053474F) + PAYLOAD[16:]),
    "version 0": packed(header(version=0) + PAYLOAD[16:]),
    "version 3": packed(header(version=3) + PAYLOAD[16:]),
    "version 4": packed(header(version=4) + PAYLOAD[16:]),
    "SH degree 4": packed(header(degree=4) + PAYLOAD[16:]),
    "31 fractional bits": packed(header(bits=31) + PAYLOAD[16:]),
    "255 fractional bits": packed(header(bits=255) + PAYLOAD[16:]),
    "version 1 with an infinite position": packed(
        header(version=1, count=1) + np.array([0, np.inf, 0], "<f2").tobytes() + bytes(10)
    ),
    "version 1 with a NaN position": packed(
        header(version=1, count=1) + np.array([0, 0, np.nan], "<f2").tobytes() + bytes(10)
    ),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_valid_variants_decode_alike(data: bytes) -> None:
    assert_same(spz.decode(data), EXPECTED)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        spz.decode(data)
    assert len(str(caught.value)) < 300


def test_messages_name_the_value_and_the_limit() -> None:
    with pytest.raises(CodecError, match=r"claims 500 Gaussians; 1 to 499 are accepted"):
        spz.decode(FRAME, max_points=499)
    with pytest.raises(CodecError, match=r"9515 bytes; 500 Gaussians of SH degree 0 take 9516"):
        spz.decode(packed(PAYLOAD[:-1]))
    with pytest.raises(CodecError, match=r"position y of row 0 is inf"):
        spz.decode(REFUSED["version 1 with an infinite position"])


BOMB = zeros(3_000_000)
BOMBS = {
    "honest": BOMB,
    "without content size": packed(header(count=3_000_000) + bytes(57_000_000), content_size=False),
    "surplus zeros": packed(header(count=1) + bytes(57_000_000)),
    "lying content size": declaring(100, blocks=b"\x02\x00\x10\x00" * 5000 + b"\x01\x00\x00"),
    "claims the cap, holds little": declaring(6_400_016, blocks=b"\x01\x00\x00"),
    "claims 1 TiB": declaring(1 << 40, blocks=b"\x02\x00\x10\x00" * 5000 + b"\x01\x00\x00"),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_cannot_make_the_decoder_allocate_past_the_cap(data: bytes) -> None:
    max_points = 100_000
    assert len(data) < 25_000
    peak = refused_with_peak(lambda: spz.decode(data, max_points=max_points))
    assert peak <= 64 * max_points + MEBIBYTE


def test_a_claimed_content_size_is_not_believed() -> None:
    tiny = declaring(500_000_000, blocks=b"\x01\x00\x00")
    assert refused_with_peak(lambda: spz.decode(tiny)) < MEBIBYTE


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_raises_codec_error_only(noise: bytes) -> None:
    with pytest.raises(CodecError):
        spz.decode(noise)
    with pytest.raises(CodecError):
        spz.decode(FRAME[:9] + noise, max_points=1000)


@settings(max_examples=300)
@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_a_flipped_byte_gives_a_cloud_or_codec_error(index: int, change: int) -> None:
    damaged = bytearray(FRAME)
    damaged[index] ^= change
    with contextlib.suppress(CodecError):
        assert len(spz.decode(bytes(damaged), max_points=1000)) <= 1000


@settings(max_examples=200)
@given(st.binary(min_size=19, max_size=19 * 20))
def test_every_payload_of_the_right_size_decodes_to_finite_values(body: bytes) -> None:
    count = len(body) // 19
    cloud = spz.decode(packed(header(count=count) + body))
    assert len(cloud) == count
    assert np.abs(cloud.opacity_logits).max() <= 10.0


@pytest.mark.parametrize(
    ("value", "accepted"),
    [(-2048.0, True), (-2048.0002, False), (2047.99976, True), (2047.9999, False), (3e38, False)],
)
def test_positions_never_wrap(value: float, accepted: bool) -> None:
    cloud = one_gaussian(positions=[0.0, value, 0.0])
    if accepted:
        assert abs(spz.decode(spz.encode(cloud)).positions[0, 1] - value) < 1e-4
    else:
        with pytest.raises(CodecError, match=r"position y of row 0 is .* SPZ holds -2048"):
            spz.encode(cloud)


def test_the_row_of_a_refusal_counts_from_the_start_of_the_cloud() -> None:
    cloud = golden_cloud("small").select(np.arange(20_000) % 500)
    cloud.positions[12_345, 2] = 5000.0
    with pytest.raises(CodecError, match=r"position z of row 12345 is 5000"):
        spz.encode(cloud)


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-30, 3e19, 3e38])
def test_rotations_without_a_usable_length_are_refused(length: float) -> None:
    with pytest.raises(CodecError, match="rotation of row 0 is"):
        spz.encode(one_gaussian(rotations=[0.0, length, 0.0, 0.0]))


@pytest.mark.parametrize("length", [1e-17, 1e17])
def test_rotations_need_not_be_normalised(length: float) -> None:
    plain = spz.payload(one_gaussian(rotations=[0.6, 0.0, 0.8, 0.0]))
    assert spz.payload(one_gaussian(rotations=[0.6 * length, 0.0, 0.8 * length, 0.0])) == plain


def test_empty_and_oversized_clouds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = golden_cloud("small")
    with pytest.raises(CodecError, match="the cloud has 0"):
        spz.encode(cloud.select(np.zeros(500, np.bool_)))
    monkeypatch.setattr(spz, "MAX_POINTS", 499)
    with pytest.raises(CodecError, match="SPZ holds 1 to 499 Gaussians, the cloud has 500"):
        spz.encode(cloud)


@pytest.mark.parametrize("level", [0, -1, 23])
def test_levels_outside_1_to_22_are_refused(level: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 22, got {level}"):
        spz.encode(golden_cloud("small"), level=level)


@pytest.mark.parametrize("content_size", [True, False])
def test_the_cap_admits_what_it_names(content_size: bool) -> None:
    assert_same(spz.decode(packed(PAYLOAD, content_size=content_size), max_points=500), EXPECTED)
