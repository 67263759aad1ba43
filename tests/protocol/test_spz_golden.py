"""SPZ bytes agree with the validators' codec, in both directions."""

import numpy as np
import pytest
import zstandard

from protocol import ply, spz
from tests.protocol.codec_data import (
    BYTES_PER_GAUSSIAN,
    HEADER_BYTES,
    assert_same,
    captured_warnings,
    cloud_of,
    golden,
    golden_cloud,
    read_table,
)

NAMES = ("small", "sh1", "sh3", "edge")
SH_DEGREE_OFFSET = 12


def test_small_payload_is_byte_identical() -> None:
    assert spz.payload(golden_cloud("small")) == golden("small.raw.bin")


@pytest.mark.parametrize("name", ["sh1", "sh3"])
def test_payload_with_sh_differs_only_by_the_dropped_degree(name: str) -> None:
    cloud = golden_cloud(name)
    expected = bytearray(
        golden(f"{name}.raw.bin")[: HEADER_BYTES + BYTES_PER_GAUSSIAN * len(cloud)]
    )
    assert expected[SH_DEGREE_OFFSET] > 0
    expected[SH_DEGREE_OFFSET] = 0
    assert spz.payload(cloud) == bytes(expected)


def test_edge_payload_is_identical_but_for_three_rounding_ties() -> None:
    cloud = golden_cloud("edge")
    actual = np.frombuffer(spz.payload(cloud), np.uint8)
    expected = np.frombuffer(golden("edge.raw.bin"), np.uint8)
    assert actual.shape == expected.shape
    rotations = HEADER_BYTES + 16 * len(cloud)
    ties = [rotations + 3 * 63, rotations + 3 * 64, rotations + 3 * 76 + 1]
    others = np.delete(np.arange(len(actual)), ties)
    np.testing.assert_array_equal(actual[others], expected[others])
    assert set(actual[ties]) <= {25, 26}  # 25 where the build fuses multiply and add
    assert set(expected[ties]) == {26}


@pytest.mark.parametrize("name", NAMES)
def test_decode_matches_the_reference_decoder(name: str) -> None:
    actual = spz.decode(golden(f"{name}.spz"))
    table = read_table(f"{name}.decoded.ply")
    expected = cloud_of(table)
    for exact in ("positions", "log_scales", "colors_dc"):
        np.testing.assert_array_equal(getattr(actual, exact), getattr(expected, exact), exact)
    np.testing.assert_allclose(actual.opacity_logits, expected.opacity_logits, rtol=0, atol=1e-6)
    infinite = np.isinf(table["opacity"])
    np.testing.assert_array_equal(np.abs(actual.opacity_logits) == 10.0, infinite)
    np.testing.assert_allclose(
        actual.rotations[:, 1:], expected.rotations[:, 1:], rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(actual.rotations[:, 0], expected.rotations[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_both_decoders_see_the_same_cloud(name: str) -> None:
    from_ply = ply.decode(golden(f"{name}.decoded.ply"))
    assert_same(from_ply, cloud_of(read_table(f"{name}.decoded.ply")))
    assert spz.payload(from_ply) == spz.payload(spz.decode(golden(f"{name}.spz")))


@pytest.mark.parametrize(("name", "degree"), [("sh1", 1), ("sh3", 3)])
def test_dropped_harmonics_are_said_so(name: str, degree: int) -> None:
    with captured_warnings() as messages:
        spz.decode(golden(f"{name}.spz"))
    assert len(messages) == 1
    assert f"degree {degree}" in messages[0]


@pytest.mark.parametrize("level", [1, 9])
def test_frame_is_plain_and_names_its_content_size(level: int) -> None:
    frame = spz.encode(golden_cloud("small"), level=level)
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == len(golden("small.raw.bin"))
    assert not parameters.has_checksum
    assert parameters.dict_id == 0
    assert zstandard.ZstdDecompressor().decompress(frame) == golden("small.raw.bin")


def test_worked_example_of_the_documentation() -> None:
    small = golden_cloud("small")
    first = small.select(np.array([0]))
    assert list(spz.payload(first)[HEADER_BYTES:]) == [
        *(80, 241, 255, 125, 15, 0, 39, 241, 255),
        *(1,),
        *(81, 158, 59),
        *(84, 144, 27),
        *(211, 172, 104),
    ]


def test_version_1_positions_are_half_floats() -> None:
    positions = np.array([[0.5, -0.25, 2.0]], "<f2")
    header = b"NGSP" + bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 12, 0, 0])
    body = header + positions.tobytes() + bytes([128, 128, 128, 128, 80, 80, 80, 128, 128, 128])
    cloud = spz.decode(zstandard.ZstdCompressor().compress(body))
    np.testing.assert_array_equal(cloud.positions, positions.astype(np.float32))
    np.testing.assert_array_equal(cloud.log_scales, np.full((1, 3), -5.0, np.float32))
